"""The device that `--device` names."""

from __future__ import annotations

import pytest
import torch

from compress3d.devices import device_named


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine with two CUDA devices; those that are made the current one."""
    made: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", made.append)
    return made


def test_cuda_is_taken_where_there_is_some(chosen: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_named(None) == device_named("cuda") == torch.device("cuda")
    assert device_named("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_named(None) == torch.device("cpu")
    assert not chosen


def test_a_numbered_device_becomes_the_current_one(chosen: list[torch.device]) -> None:
    assert device_named("cuda:1") == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)]


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize(
    ("name", "message"), [("cuda:2", "finds 2 CUDA devices"), ("gpu", "choose"), ("cuda:x", "choose")]
)
def test_a_device_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        device_named(name)


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch finds no CUDA device here"):
        device_named("cuda")
