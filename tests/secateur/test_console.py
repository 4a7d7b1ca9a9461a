import pytest

from secateur.console import progress_bar, silent, stretch


def test_a_stretch_is_a_part_of_the_whole() -> None:
    told: list[tuple[float, str]] = []
    inner = stretch(stretch(lambda done, doing: told.append((done, doing)), 0.5, 1.0), 0.0, 0.5)
    inner(0.0, "a")
    inner(1.0, "b")
    assert told == [(0.5, "a"), (0.75, "b")]
    silent(0.5, "nobody hears")


def test_without_a_terminal_each_change_of_work_is_a_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as report:
        for done, doing in ((0.0, "merge"), (0.2, "merge"), (0.5, "refit [bold]")):
            report(done, doing)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert [line.split(None, 1) for line in printed.err.splitlines()] == [["0%", "merge"], ["50%", "refit [bold]"]]


def test_without_a_terminal_steps_of_the_same_work_are_not_told_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as report:
        for step in range(50):
            report(step / 50, f"recover: step {step}")
    assert capsys.readouterr().err.splitlines() == ["  0% recover: step 0"]
