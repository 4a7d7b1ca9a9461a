import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.quantities import format_bytes, format_count, format_decibels, parse_decibels, parse_keep, parse_size


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("25%", 0.25),
        ("0.25", 0.25),
        (0.25, 0.25),
        (".5", 0.5),
        ("12.5 %", 0.125),
        ("100%", 1.0),
        ("1.0", 1.0),
        (1.0, 1.0),
    ],
)
def test_shares(text: str | float, share: float) -> None:
    value = parse_keep(text)
    assert isinstance(value, float) and value == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "count"),
    [("50000", 50_000), ("50k", 50_000), ("1.5M", 1_500_000), ("50_000", 50_000), (50_000, 50_000), ("1", 1), (1, 1)],
)
def test_counts(text: str | int, count: int) -> None:
    value = parse_keep(text)
    assert isinstance(value, int) and value == count


@pytest.mark.parametrize(
    "text", ["", "x", "25x", "0%", "0", "-5", "-5%", "101%", "25.5", "0.0001k", "nan", "inf", "1e400", "5 0", "%", "k"]
)
def test_what_is_no_amount_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        parse_keep(text)


def test_a_share_above_one_is_told_about_percent() -> None:
    with pytest.raises(ValueError, match=r"did you mean 25\.5%"):
        parse_keep("25.5")


@pytest.mark.parametrize(
    ("text", "size"),
    [("2MB", 2_000_000), ("800kB", 800_000), ("1.5 MiB", 1_572_864), ("2mb", 2_000_000), (4096, 4096), ("7 B", 7)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "2 potatoes", "0", "-1MB", "0.5", "2M", "nanMB", "1e999 MB"])
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(("text", "decibels"), [("35", 35.0), ("35 dB", 35.0), ("32.5dB", 32.5), (30, 30.0)])
def test_decibels(text: str | float, decibels: float) -> None:
    assert parse_decibels(text) == decibels


@pytest.mark.parametrize("text", ["", "0", "-3", "inf", "35%", "dB"])
def test_what_is_no_quality_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quality"):
        parse_decibels(text)


@given(st.text(max_size=12))
def test_any_text_is_parsed_or_refused_with_a_value_error(text: str) -> None:
    for parse in (parse_keep, parse_size, parse_decibels):
        try:
            assert parse(text) > 0
        except ValueError as error:
            assert repr(text.strip()) in str(error)


@given(st.integers(1, 10**12))
def test_bytes_for_people_read_back_within_half_a_percent(size: int) -> None:
    assert parse_size(format_bytes(size)) == pytest.approx(size, rel=0.006)


def test_decibels_for_people() -> None:
    assert format_decibels(35.204) == "35.20 dB"
    assert format_decibels(float("inf")) == "identical"


def test_counts_are_exact_while_they_are_short() -> None:
    said = {
        381_610: "381,610",
        999_999: "999,999",
        999_950_000: "1000 M",
        20_908_224: "20.9 M",
        4.1e12: "4.1 T",
        0: "0",
    }
    assert {count: format_count(count) for count in said} == said
