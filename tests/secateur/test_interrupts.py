from pathlib import Path

import pytest

from secateur.interrupts import naming_what_was_written


def struck_in_compiled_code() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as interrupt:
        raise SystemError("returned a result with an exception set") from interrupt


def test_an_interrupt_names_the_files_written_before_it() -> None:
    written: list[Path] = []
    with pytest.raises(KeyboardInterrupt, match="written before: a, b"), naming_what_was_written(written):
        written += [Path("a"), Path("b")]
        raise KeyboardInterrupt


def test_an_interrupt_of_compiled_code_is_one() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, naming_what_was_written():
        struck_in_compiled_code()
    assert caught.value.args == ()


def test_the_innermost_names_win() -> None:
    with (
        pytest.raises(KeyboardInterrupt, match="written before: a"),
        naming_what_was_written(),
        naming_what_was_written([Path("a")]),
    ):
        struck_in_compiled_code()


@pytest.mark.parametrize("error", [SystemError("another"), ValueError("a value")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), naming_what_was_written([Path("a")]):
        raise error
