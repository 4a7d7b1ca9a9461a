"""The command that every bench is: which sections and parts, where figures and pictures go, quick or whole."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parts import Job, Part, measure, parts_left, read_results
from peers import ROOT

from secateur.console import console
from secateur.report.record import describe_machine


@dataclass(frozen=True)
class Bench:
    """A bench as a command.

    Args:
        name: of its JSON, results/<name>.json.
        description: what it measures.
        sections: name -> the section's parts, given the settings of a run.
        packages: whose versions are written down.
        draw: draws what is in the JSON into a folder; None: there is nothing to draw.
        threads: to be held to, if nobody says otherwise.
    """

    name: str
    description: str
    sections: Mapping[str, Callable[[Any], Mapping[str, Job]]]
    packages: Sequence[str]
    draw: Callable[[dict[str, Any], Path], Iterable[Path]] | None = None
    threads: int = field(default_factory=lambda: describe_machine().cores)

    def parser(self) -> argparse.ArgumentParser:
        """The options that all benches have; lists are names with commas between."""
        names = ",".join(self.sections)
        parser = argparse.ArgumentParser(
            description=self.description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--only", type=names_of(self.sections), default=tuple(self.sections), help=f"of {names}")
        parser.add_argument("--parts", default="*", metavar="PATTERN", help="only the parts whose names match, as 'a*'")
        parser.add_argument("--missing", action="store_true", help="only the parts that the JSON does not hold yet")
        parser.add_argument(
            "--output", type=Path, help=f"the JSON to write into (results/{self.name}.json; with --quick under out/)"
        )
        parser.add_argument("--threads", type=int, default=self.threads, help="threads to be held to")
        parser.add_argument("--quick", action="store_true", help="only see that all runs; the figures mean nothing")
        if self.draw is not None:
            where = "folder of the pictures (docs/images; with --quick under out/)"
            parser.add_argument("--images", type=Path, help=where)
            parser.add_argument("--plots", action="store_true", help="draw from the JSON, measure nothing")
        return parser

    def parse(self, parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
        """The options, with `scratch`, a folder for what comes and goes."""
        options = parser.parse_args(arguments)
        options.scratch = ROOT / "out" / "bench"
        # Figures that mean nothing must not land among those that do.
        results = options.scratch if options.quick else Path(__file__).resolve().parent / "results"
        options.output = options.output or results / f"{self.name}.json"
        if self.draw is not None:
            options.images = options.images or (options.scratch if options.quick else ROOT / "docs" / "images")
        return options

    def parts(self, options: argparse.Namespace, settings: Any) -> list[Part]:
        """The parts that the options name; with --missing without those whose figures are held already."""
        jobs = {section: self.sections[section](settings) for section in options.only}
        return parts_left(jobs, options.parts, read_results(options.output) if options.missing else {})

    def run(self, options: argparse.Namespace, settings: Any, **facts: Any) -> None:
        """Measure, and draw what came out.

        Args:
            options: of `parse`.
            settings: what sections get.
            facts: written down with each part.
        """
        self.measure(options, settings, **facts)
        self.draw_pictures(options)

    def measure(self, options: argparse.Namespace, settings: Any, **facts: Any) -> None:
        """Measure the parts, each kept as soon as it is known."""
        if self.draw is not None and options.plots:
            return
        parts = self.parts(options, settings)
        measure(parts, options.output, options.threads, self.packages, {"quick": options.quick} | facts)
        console.print(f"wrote {len(parts)} parts into {options.output.name}")

    def draw_pictures(self, options: argparse.Namespace) -> None:
        """Draw what the JSON holds."""
        if self.draw is not None:
            for picture in self.draw(read_results(options.output), options.images):
                console.print(f"drew {picture.name}")


def names_of(known: Mapping[str, Any]) -> Callable[[str], tuple[str, ...]]:
    """A parser of names with commas between."""

    def names(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return chosen

    return names
