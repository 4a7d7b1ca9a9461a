"""Write what says how records look: secateur/evaluation/schema.json, and the tables of docs/record.md.

python scripts/record_schema.py            # write both
python scripts/record_schema.py --check    # say whether they are up to date; exit with 1 where they are not
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from secateur.evaluation import record
from secateur.evaluation.schema import described_fields, record_schema
from secateur.files import replacing_file
from secateur.metrics.interval import Interval
from secateur.report.record import Machine

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "secateur" / "evaluation" / "schema.json"
PAGE = ROOT / "docs" / "record.md"
BEGIN, END = "<!-- fields: written by scripts/record_schema.py -->\n", "<!-- end of fields -->\n"

KINDS: tuple[type, ...] = (
    record.EvaluationRecord,
    record.Run,
    Machine,
    record.Subject,
    record.Measurement,
    record.Noise,
    Interval,
    record.Part,
    record.Column,
    record.Pair,
    record.Comparison,
    record.Change,
)


def schema_text() -> str:
    """The JSON schema as its file has it."""
    return json.dumps(record_schema(), indent=2) + "\n"


def page_text() -> str:
    """The page, with its tables as the dataclasses are now."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{''.join(map(_table, KINDS))}\n{END}{after}"


def _table(kind: type) -> str:
    first = (kind.__doc__ or "").strip().splitlines()[0]
    told = described_fields(kind)
    hints = get_type_hints(kind)
    types = {field.name: _type_name(hints[field.name], str(field.type)) for field in dataclasses.fields(kind)}
    rows = "".join(f"| `{name}` | {types[name]} | {text} |\n" for name, text in told.items())
    return f"\n### {kind.__name__}\n\n{first}\n\n| Field | Type | Meaning |\n|---|---|---|\n{rows}"


def _type_name(hint: Any, written: str) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in get_args(hint))
    return f"`{written}`".replace("|", "\\|")


def main(arguments: list[str]) -> int:
    fresh = {SCHEMA: schema_text(), PAGE: page_text()}
    if arguments == ["--check"]:
        stale = [path.name for path, text in fresh.items() if not path.exists() or path.read_text("utf-8") != text]
        print(f"{', '.join(stale)} out of date: run python scripts/record_schema.py" if stale else "up to date")
        return 1 if stale else 0
    if arguments:
        print(__doc__)
        return 2
    for path, text in fresh.items():
        with replacing_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
