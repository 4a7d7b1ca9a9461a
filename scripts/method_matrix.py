"""Write docs/methods.md, the matrix of all methods, from their classes: python scripts/method_matrix.py [--check]

What a method does and its paper come from its docstring, its family from the methods that it has, what it needs from
their signatures and from what their code calls. With --check nothing is written; the exit status says if it would be.
"""

from __future__ import annotations

import dis
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import lightning.pytorch as lightning
import torch

from secateur.files import replacing_file
from secateur.masks import TrainableMask

PACKAGES = ("secateur", "compress3d", "diffusion", "vit")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "methods.md"

CRITERIA, MASKS, ALLOCATION, SCHEDULES = "Importance criteria", "Trainable masks", "Allocation", "Schedules"
PENALTIES, DURING, RECOVERY = "Penalties and sparse optimisers", "Pruning during training", "Recovery"
FAMILIES = {
    CRITERIA: "What is each unit worth?",
    MASKS: "Gates that are learnt, and then hardened.",
    ALLOCATION: "Which units stay within a budget?",
    SCHEDULES: "How much, when; and drivers that prune in rounds.",
    PENALTIES: "What brings units to 0 while a network trains.",
    DURING: "Callbacks of any Lightning trainer.",
    "Layer solvers": "Pruning of one layer's weights from what it sees, and the solvers below it.",
    RECOVERY: "What mends a network or scene after a cut.",
    "Surgery": "What removes units from a network.",
    "Evaluation": "Problems with a known answer, controls, reports.",
    "Neural fields": "Methods of neural radiance fields that are none of the above.",
    "Splat scenes": "Methods of Gaussian splats that are none of the above.",
    "Meshes": "Methods of triangle meshes that are none of the above.",
    "Voxels": "Methods of sparse voxels that are none of the above.",
    "Diffusion models": "Methods of diffusion models that are none of the above.",
    "Tokens": "Which tokens of a vision transformer go, or become one; and how many, where.",
    "Vision transformers": "Methods of vision transformers that are none of the above.",
    "Building blocks": "What the methods above are made of.",
}

# Where a method that cites a paper belongs if nothing in its signature tells.
PLACES = {
    "secateur.recovery": RECOVERY,
    "compress3d.splats.recover": RECOVERY,
    "compress3d.splats.refit": RECOVERY,
    "compress3d.splats.merge": RECOVERY,
    "compress3d.splats.compensation": RECOVERY,
    "compress3d.splats.sundae": RECOVERY,
    "compress3d.mesh": "Meshes",
    "compress3d.nerf": "Neural fields",
    "compress3d.voxels": "Voxels",
    "compress3d": "Splat scenes",
    "diffusion.train": RECOVERY,
    "diffusion.lora": RECOVERY,
    "diffusion": "Diffusion models",
    "vit.tokens": "Tokens",
    "vit": "Vision transformers",
    "secateur.schedules": SCHEDULES,
    "secateur.greedy": SCHEDULES,
    "secateur.mask_fit": MASKS,
    "secateur.sparsity_adaptive": ALLOCATION,
    "secateur.allocation": ALLOCATION,
    "secateur.distortion": ALLOCATION,
    "secateur.ecoflap": ALLOCATION,
    "secateur.oneshot": "Layer solvers",
    "secateur.blocks": "Layer solvers",
    "secateur.solvers": "Layer solvers",
    "secateur.surgery": "Surgery",
    "secateur.harness": "Evaluation",
}

# The first of these that an annotation or a parameter names tells the granularity.
GRANULARITIES = {
    "granularity": "weights, N:M, blocks, rows, columns",
    "SplatScene": "Gaussians",
    "CompensatedScene": "Gaussians",
    "NeuralField": "anchors, leaves",
    "Mesh": "faces",
    "VoxelPyramid": "voxels",
    "Network": "units of a network",
    "Prunable": "any unit",
    "UnitGroup": "any unit",
    "Pattern": "weights, N:M, blocks",
    "Tokens": "patches",
    "Gram": "weights of a layer",
    "Weights": "weights, N:M, blocks, rows, columns",
    "Module": "a network",
    "weight": "weights of a layer",
}
# And these, all of them, what it needs.
DATA = {
    "Objective": "data",
    "Pictures": "pictures",
    "Cameras": "views",
    "Silhouettes": "silhouettes",
    "Photometric": "pictures",
    "Gram": "layer inputs",
    "LatentSet": "generated latents",
    "Trajectories": "trajectories",
}
NEEDS = {
    "calibration": "data",
    "train": "training",
    "teacher": "a teacher",
    "scores": "scores",
    "gradients": "gradients",
}


@dataclass(frozen=True)
class Method:
    """A row of the matrix."""

    family: str
    name: str
    what: str
    papers: tuple[str, ...]
    granularity: str
    needs: str
    where: str


def methods() -> list[Method]:
    """All methods of the packages, by family and name."""
    found: list[Method] = []
    for name in _modules():
        rows = [row for thing in _public(name) if (row := _method(thing, name)) is not None]
        found += rows or _file(name)
    order = list(FAMILIES)
    return sorted(found, key=lambda row: (order.index(row.family), row.name, row.where))


def page() -> str:
    """The matrix as Markdown."""
    rows = methods()
    lines = [
        "# Methods",
        "",
        "Made from the docstrings and signatures of the code by `scripts/method_matrix.py`; do not edit it by hand.",
        "*Needs* says what a method looks at beside the weights: data, gradients (of a loss), second derivatives,",
        "training. A dash is for what the code does not tell. A file that cites a paper, while none of its classes and",
        'functions does, is a row itself. "Any unit" is whatever a `UnitGroup` holds: single weights, N:M, blocks,',
        "channels, heads, Gaussians.",
    ]
    for family, about in FAMILIES.items():
        members = [row for row in rows if row.family == family]
        if members:
            lines += [
                "",
                f"## {family}",
                "",
                about,
                "",
                "| Method | What it does | Paper | Granularity | Needs | Where |",
            ]
            lines += ["|---|---|---|---|---|---|", *map(_row, members)]
    return "\n".join(lines + _by_paper(rows)) + "\n"


def _by_paper(rows: list[Method]) -> list[str]:
    """A table of the papers by arXiv number, each with the methods that cite it."""
    cited: dict[str, dict[str, None]] = {}
    for row in rows:
        for paper in row.papers:
            if paper[0].isdigit():
                cited.setdefault(paper, {})[f"`{row.name}`"] = None
    lines = ["", "## Papers", "", "By arXiv number, with the methods above that cite them.", ""]
    lines += ["| Paper | Methods |", "|---|---|"]
    return lines + [f"| {_linked(paper)} | {', '.join(names)} |" for paper, names in sorted(cited.items())]


def family_of(thing: Any, module: str) -> str | None:
    """The family of a public class or function; None for what is no method."""
    is_class = inspect.isclass(thing)
    if is_class and (getattr(thing, "_is_protocol", False) or inspect.isabstract(thing)):
        return None
    called = _parameters(_entry(thing))
    if is_class and "calibration" in _parameters(getattr(thing, "score", None)):
        return CRITERIA
    if is_class and issubclass(thing, TrainableMask):
        return MASKS
    if called[:3] == ["scores", "groups", "budget"]:
        return ALLOCATION
    if called == ["progress"] and is_class:
        return SCHEDULES
    if is_class and (called == ["tensors", "groups"] or issubclass(thing, torch.optim.Optimizer)):
        return PENALTIES
    place = _place(module)
    if place == RECOVERY and is_class and _recovers(thing, module):
        return RECOVERY
    if not any(paper[0].isdigit() for paper in papers_of(thing.__doc__ or "")):
        return None
    if is_class and issubclass(thing, lightning.Callback):
        return DURING
    return place or "Building blocks"


def _place(module: str) -> str | None:
    return next((PLACES[name] for name in sorted(PLACES, key=len, reverse=True) if _inside(module, name)), None)


def papers_of(text: str) -> tuple[str, ...]:
    """arXiv numbers in a docstring; authors and years if there are none."""
    flat = " ".join(text.split())
    numbers = re.findall(r"(?<![\d.])\d{4}\.\d{5}(?!\d)|(?<=arXiv )\d{4}\.\d{4}(?!\d)", flat)
    authors = re.findall(r"[A-Z][\w'-]+ (?:et al\.|and [A-Z][\w'-]+),? (?:19|20)\d\d", flat)
    return tuple(dict.fromkeys(numbers or authors))


def needs_of(thing: Any, family: str) -> str:
    """What a method looks at, as its signatures and its code tell it."""
    if family == SCHEDULES and inspect.isclass(thing):
        return "nothing"
    if family in (MASKS, PENALTIES, DURING):
        return "training"
    names = _reached(thing)
    needs = []
    if family == CRITERIA:
        entry = thing.score
        if any(step.argval == "calibration" and "LOAD" in step.opname for step in dis.get_instructions(entry)):
            data = _named(entry, ["calibration"], DATA)
            needs += data or ["what its criteria need"]
    else:
        for entry in _runs(thing):
            needs += _named(entry, _parameters(entry), DATA)
            needs += [NEEDS[name] for name in _parameters(entry) if name in NEEDS]
    if "stream_hessian_vector_products" in names:
        needs.append("second derivatives")
    elif names & {"mean_over_losses", "loss_gradients", "stream_gradients"}:
        needs.append("gradients")
    if family == CRITERIA and issubclass(thing, lightning.Callback):
        needs.append("training")
    return ", ".join(dict.fromkeys(needs)) or ("nothing" if family == CRITERIA else "")


def granularity_of(thing: Any, family: str) -> str:
    """What the units of a method are, as its signatures tell it."""
    if family == MASKS:
        return "any unit"
    entries = [thing.score] if family == CRITERIA else []
    for entry in [*entries, *_runs(thing), *([thing.__init__] if inspect.isclass(thing) else [])]:
        names = _parameters(entry)
        hits = _named(entry, names, GRANULARITIES) + [GRANULARITIES[name] for name in names if name in GRANULARITIES]
        ranked = sorted(hits, key=list(GRANULARITIES.values()).index)
        if ranked:
            return ranked[0]
    return "any unit" if family == CRITERIA else ""


def _method(thing: Any, module: str) -> Method | None:
    family = family_of(thing, module)
    if family is None:
        return None
    own = inspect.cleandoc(thing.__doc__ or "")
    if not own:
        raise ValueError(f"{module}.{thing.__name__} has no docstring: it says what the method does")
    above = [base.__doc__ or "" for base in getattr(thing, "__mro__", ())[1:] if _ours(base.__module__)]
    of_file = papers_of(sys.modules[module].__doc__ or "")
    papers = next(filter(None, map(papers_of, [own, *above])), of_file if len(of_file) == 1 else ())
    return Method(
        family, thing.__name__, _summary(own), papers, granularity_of(thing, family), needs_of(thing, family), module
    )


def _file(module: str) -> list[Method]:
    """A row for a file that cites a paper, of which no class or function has a row."""
    text = inspect.cleandoc(sys.modules[module].__doc__ or "")
    papers = tuple(paper for paper in papers_of(text) if paper[0].isdigit())
    family = _place(module) or "Building blocks"
    return [Method(family, module.rpartition(".")[2], _summary(text), papers, "", "", module)] if papers else []


def _row(method: Method) -> str:
    papers = ", ".join(map(_linked, method.papers))
    cells = [f"`{method.name}`", _escaped(method.what), papers, method.granularity, method.needs, f"`{method.where}`"]
    return "| " + " | ".join(cell or "–" for cell in cells) + " |"  # noqa: RUF001


def _linked(paper: str) -> str:
    return f"[{paper}](https://arxiv.org/abs/{paper})" if paper[0].isdigit() else paper


def _summary(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def _escaped(text: str) -> str:
    """Text as a cell: code stays code, and nothing else is markup."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_<\[\]\\])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts).replace("|", "\\|")


def _modules() -> Iterator[str]:
    for package in PACKAGES:
        root = importlib.import_module(package)
        yield from sorted(info.name for info in pkgutil.walk_packages(root.__path__, f"{package}."))


def _public(name: str) -> Iterator[Any]:
    module: ModuleType = importlib.import_module(name)
    for key, thing in vars(module).items():
        defined = inspect.isclass(thing) or isinstance(thing, FunctionType)
        if defined and (thing.__module__, thing.__name__) == (name, key) and not key.startswith("_"):
            yield thing


def _recovers(thing: type, module: str) -> bool:
    """A term of a distillation loss, one way to do what an abstract class says, or what its file is named for."""
    if {"student", "teacher"} <= set(_parameters(getattr(thing, "loss", None))):
        return True
    if any(inspect.isabstract(base) and base.__module__ == module for base in thing.__mro__[1:]):
        return True
    options = inspect.signature(thing).parameters.values()
    runs = bool(_runs(thing)) or all(option.default is not option.empty for option in options)
    return runs and thing.__name__.lower() == module.rpartition(".")[2].replace("_", "")


def _entry(thing: Any) -> Callable[..., Any] | None:
    """The function that runs a method: itself, `__call__`, `prune`; or else what makes it."""
    if not inspect.isclass(thing):
        return thing
    for name in ("__call__", "prune", "score", "cut", "prepare", "loss"):
        function = getattr(thing, name, None)
        if isinstance(function, FunctionType):
            return function
    return thing.__init__ if isinstance(thing.__init__, FunctionType) else None


def _runs(thing: Any) -> list[Callable[..., Any]]:
    """The functions that run a method: its entry, or all its public ones where none stands out."""
    entry = _entry(thing)
    if entry is not None and entry.__name__ != "__init__":
        return [entry]
    public = {name: value for name, value in vars(thing).items() if not name.startswith("_")}
    return [value for value in public.values() if isinstance(value, FunctionType)]


def _parameters(function: Any) -> list[str]:
    if not callable(function):
        return []
    return [name for name in inspect.signature(function).parameters if name != "self"]


def _named(function: Any, parameters: list[str], table: dict[str, str]) -> list[str]:
    """The table's words for the types in the annotations of some parameters, aliases looked up."""
    if not isinstance(function, FunctionType):
        return []
    words: list[str] = []
    for name in parameters:
        text = str(inspect.signature(function).parameters[name].annotation)
        alias = inspect.unwrap(function).__globals__.get(text)
        text = text if alias is None or inspect.isclass(alias) else str(alias)
        words += [word for key, word in table.items() if re.search(rf"\b{key}\b", text)]
    return words


def _reached(thing: Any) -> set[str]:
    """Names that the code of a method and of its parts loads, that of the functions which they name, and so on."""
    names: set[str] = set()
    todo = [thing]
    if inspect.isclass(thing):
        space = vars(sys.modules[thing.__module__])
        parts = [space.get(str(field.type)) for field in fields(thing)] if is_dataclass(thing) else []
        classes = [base for each in (thing, *parts) if inspect.isclass(each) for base in each.__mro__]
        todo = [value for each in classes if _ours(each.__module__) for value in vars(each).values()]
    seen: set[CodeType] = set()
    while todo:
        function = todo.pop()
        function = inspect.unwrap(function) if callable(function) else function
        if not isinstance(function, FunctionType) or function.__code__ in seen:
            continue
        seen.add(function.__code__)
        loaded = set(_names(function.__code__))
        names |= loaded
        values = (function.__globals__.get(name) for name in loaded)
        todo += [value for value in values if callable(value) and _ours(getattr(value, "__module__", ""))]
    return names


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def _ours(module: str | None) -> bool:
    return any(_inside(module or "", package) for package in PACKAGES)


def main(arguments: list[str]) -> int:
    fresh = page()
    if arguments == ["--check"]:
        same = PAGE.exists() and PAGE.read_text(encoding="utf-8") == fresh
        print(f"{PAGE.name} is {'up to date' if same else 'out of date: run python scripts/method_matrix.py'}")
        return 0 if same else 1
    if arguments:
        print(__doc__)
        return 2
    with replacing_file(PAGE) as temporary:
        temporary.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
