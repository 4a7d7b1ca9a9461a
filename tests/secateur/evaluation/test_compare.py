"""What counts as a difference."""

import math
from dataclasses import replace

import pytest

from secateur.evaluation.compare import compare_records
from secateur.evaluation.measurements import averaged, mean_of, pack_answers
from secateur.evaluation.record import Change, EvaluationRecord, Measurement, Noise, Subject
from secateur.report.record import Machine
from tests.secateur.evaluation.records import record, run, subject, times

VIEWS = (30.0, 33.0, 36.0, 31.0, 34.0, 32.0)


def changes(new: EvaluationRecord, old: EvaluationRecord) -> dict[tuple[str, str | None], Change]:
    found = compare_records(new, old, "old.json").changes
    assert len({(change.subject, change.measurement) for change in found}) == len(found)
    return {(change.subject, change.measurement): change for change in found}


def verdict(now: Measurement, then: Measurement, **both: object) -> Change:
    """On one measurement of a candidate."""
    new, old = (record(Subject("one", measurements={"it": one}), **both) for one in (now, then))  # type: ignore[arg-type]
    return changes(new, old)["one", "it"]


def test_a_record_has_not_changed_since_itself() -> None:
    one = record()
    assert {change.verdict for change in compare_records(one, one, "itself").changes} == {"within noise"}
    assert compare_records(one, one, "itself").notes == ()


def test_one_byte_counts() -> None:
    found = changes(record(subject("a", size=10**7 + 1)), record(subject("a", size=10**7)))["a", "size"]
    assert (found.verdict, found.old, found.new, found.noise) == ("worse", 10**7, 10**7 + 1, 0.0)
    assert changes(record(subject("a", size=7)), record(subject("a", size=8)))["a", "size"].verdict == "better"


@pytest.mark.parametrize(
    ("now", "error", "expected"),
    [(30.0, 1.0, "within noise"), (27.5, 1.0, "within noise"), (27.0, 1.0, "worse"), (33.0, 1.0, "better")],
)
def test_means_differ_beyond_two_standard_errors_of_both(now: float, error: float, expected: str) -> None:
    one, other = (mean_of(value, "dB", "PSNR", "higher", error=error) for value in (now, 30.0))
    found = verdict(one, other)
    assert found.verdict == expected
    if now != 30.0:
        assert found.noise == pytest.approx(2 * math.sqrt(2))


def test_what_has_no_better_way_differs() -> None:
    one, other = (mean_of(value, "", "it", "neither", error=0.1) for value in (1.0, 2.0))
    assert verdict(one, other).verdict == "different"


def test_the_same_samples_are_compared_in_pairs() -> None:
    """A tenth of a dB in each view: far within the spread over views, and yet no noise."""
    old = record(subject("a", psnr=VIEWS))
    new = record(subject("a", psnr=[value - 0.1 - 0.01 * (index % 2) for index, value in enumerate(VIEWS)]))
    found = changes(new, old)["a", "psnr"]
    assert found.verdict == "worse" and found.noise is not None and found.noise < 0.1
    assert "6 pairs" in found.reason
    other = replace(new, protocol={"views": 5})
    assert changes(other, old)["a", "psnr"].verdict == "within noise"
    uneven = record(subject("a", psnr=[value + (-1) ** index for index, value in enumerate(VIEWS)]))
    assert changes(uneven, old)["a", "psnr"].verdict == "within noise"


def test_right_answers_are_compared_in_pairs() -> None:
    """Four of 400 answers go wrong and none right: far within two standard errors, and yet no noise."""
    before = [index % 4 > 0 for index in range(400)]
    after = [right and index not in (1, 9, 77, 333) for index, right in enumerate(before)]
    now, then = (
        replace(averaged(list(map(float, right)), "share", "accuracy", "higher"), answers=pack_answers(right))
        for right in (after, before)
    )
    reference = {"reference": subject("whole")}
    found = verdict(now, then, **reference)
    assert found.verdict == "worse" and found.old == 0.75 and found.new == 0.74 and "400 pairs" in found.reason
    plain = replace(now, answers=None)
    assert verdict(plain, then, **reference).verdict == "within noise"
    swapped = [not right if index in (0, 1) else right for index, right in enumerate(before)]
    same = replace(averaged(list(map(float, swapped)), "share", "accuracy", "higher"), answers=pack_answers(swapped))
    assert verdict(same, then, **reference).verdict == "within noise"


def test_rounding_is_no_difference() -> None:
    old = record(subject("a", psnr=VIEWS))
    assert changes(record(subject("a", psnr=[v * (1 + 1e-8) for v in VIEWS])), old)["a", "psnr"].verdict == (
        "within noise"
    )


@pytest.mark.parametrize(
    ("now", "reference", "expected"),
    [
        ((10.2, 10.0, 10.1), (10.0, 10.0), "within noise"),
        ((20.0, 20.2, 20.1), (10.0, 10.0), "worse"),
        ((5.0, 5.1, 5.2), (10.0, 10.0), "better"),
        ((20.0, 9.0, 21.0), (10.0, 10.0), "within noise"),
        ((20.0, 20.2, 20.1), (20.0, 20.0), "within noise"),
    ],
    ids=["spread", "slower", "faster", "wide spread", "the machine is slower"],
)
def test_times_differ_beyond_both_spreads_and_what_the_machine_moved_by(
    now: tuple[float, ...], reference: tuple[float, ...], expected: str
) -> None:
    old = record(subject("a", frame=(10.0, 10.1, 9.9)), reference=subject("whole", frame=(10.0, 10.0)))
    new = record(subject("a", frame=now), reference=subject("whole", frame=reference))
    assert changes(new, old)["a", "rate"].verdict == expected


def test_the_reference_is_the_control() -> None:
    """Its own time moved: that is said of it, and is no failure of a candidate."""
    old = record(subject("a"), reference=subject("whole"))
    new = record(subject("a"), reference=subject("whole", frame=(20.0, 20.1, 20.2)))
    new = replace(new, comparison=compare_records(new, old, "old.json"))
    found = changes(new, old)["whole", "rate"]
    assert found.verdict == "worse" and "the machine or the software moved" in found.reason
    assert new.worse == ()
    lost = record(subject("a", size=2000))
    assert [one.measurement for one in replace(lost, comparison=compare_records(lost, old, "old.json")).worse] == [
        "size"
    ]


def test_times_of_another_machine_are_not_compared() -> None:
    old, slow = record(subject("a")), subject("a", frame=(90.0, 91.0, 92.0))
    for changed in (run(threads=2), run(machine=Machine("another", 2, None, None, "Linux"))):
        new = record(slow, runs=(changed,))
        found = compare_records(new, old, "old.json")
        assert "another machine" in found.notes[0]
        judged = {(change.subject, change.measurement): change.verdict for change in found.changes}
        assert judged["a", "rate"] == "unclear" and judged["a", "size"] == "within noise"


def test_without_a_noise_a_difference_is_unclear_and_equality_is_not() -> None:
    one, other = (mean_of(value, "", "FD", "lower", samples=20) for value in (1.0, 2.0))
    assert verdict(one, other).verdict == "unclear" and verdict(one, one).verdict == "within noise"
    single = times(10.0)
    assert single.noise == Noise("repeats", 0.0, (100.0,))
    assert verdict(single, times(20.0)).verdict == "unclear"


def test_equal_pictures_are_better_than_any() -> None:
    equal = averaged([math.inf, math.inf], "dB", "PSNR", "higher")
    near = averaged([50.0, 51.0], "dB", "PSNR", "higher")
    broken = mean_of(math.nan, "dB", "PSNR", "higher")
    assert verdict(equal, near).verdict == "better" and verdict(near, equal).verdict == "worse"
    assert verdict(equal, equal).verdict == "within noise"
    assert verdict(broken, near).verdict == verdict(equal, broken).verdict == "unclear"


def test_other_units_are_unclear() -> None:
    found = verdict(mean_of(1.0, "s", "time", "lower", error=0.1), mean_of(1000.0, "ms", "time", "lower", error=0.1))
    assert found.verdict == "unclear" and "ms and s" in found.reason


def test_what_is_new_and_what_is_gone_is_said() -> None:
    new = record(subject("a", extra=times(1.0, 1.1)), subject("fresh"))
    old = record(subject("a", psnr=VIEWS), subject("lost"))
    found = changes(new, old)
    assert {key: found[key].verdict for key in (("a", "extra"), ("a", "psnr"), ("fresh", None), ("lost", None))} == {
        ("a", "extra"): "new",
        ("a", "psnr"): "gone",
        ("fresh", None): "new",
        ("lost", None): "gone",
    }


def test_what_else_has_changed_is_noted() -> None:
    old = record()
    new = record(reference=subject("whole", sha256="others"), protocol={"views": 8, "up": "y"})
    assert compare_records(new, old, "old.json").notes == (
        "the reference has other bytes than it had",
        "the protocol differs: up, views",
    )


def test_records_of_other_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"old.json: a record of the kind 'vit'"):
        compare_records(record(), record(kind="vit"), "old.json")
