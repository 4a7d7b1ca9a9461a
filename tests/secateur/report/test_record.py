import dataclasses
import json
import math
from pathlib import Path

import pytest

from secateur.report.record import Machine, Steps, describe_machine, package_versions, to_json


@dataclasses.dataclass(frozen=True)
class Inner:
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Outer:
    path: Path
    inner: Inner
    named: dict[str, Inner]
    nothing: None = None


def test_records_become_plain_json() -> None:
    record = Outer(Path("a/b.ply"), Inner((1.0, math.inf, math.nan)), {"x": Inner(())})
    plain = to_json(record)
    assert plain == {
        "path": str(Path("a/b.ply")),
        "inner": {"values": [1.0, None, None]},
        "named": {"x": {"values": []}},
        "nothing": None,
    }
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_steps_add_up_and_survive_errors() -> None:
    steps = Steps()
    with steps("one"):
        pass
    once = steps.seconds["one"]
    with pytest.raises(RuntimeError), steps("one"):
        raise RuntimeError
    assert steps.seconds["one"] > once >= 0
    assert list(steps.seconds) == ["one"]


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert isinstance(machine, Machine)
    assert machine.processor and machine.system and machine.cores >= 1
    assert machine.memory_bytes is None or machine.memory_bytes > 10**8


def test_versions_leave_out_what_is_not_installed() -> None:
    versions = package_versions("numpy", "no-such-package-at-all")
    assert set(versions) == {"python", "numpy"}
