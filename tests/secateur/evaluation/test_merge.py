"""Several runs as one comparison."""

from dataclasses import replace

import pytest

from secateur.evaluation.merge import candidate_pairs, merge_records
from secateur.evaluation.record import Subject
from tests.secateur.evaluation.records import record, run, subject

VIEWS = (30.0, 31.0, 32.0, 33.0)


def test_candidates_keep_their_runs_and_what_the_reference_measured_there() -> None:
    first = record(subject("a", psnr=VIEWS), reference=subject("whole", frame=(10.0, 10.2)))
    second = record(
        subject("b", psnr=[value + 1 for value in VIEWS]),
        reference=subject("whole", frame=(20.0, 20.2)),
        runs=(run(command="secateur evaluate again"),),
    )
    merged = merge_records([first, second], ["one", "two"])
    assert [(one.name, one.run) for one in merged.candidates] == [("a", 0), ("b", 1)]
    assert [one.command for one in merged.runs] == [first.runs[0].command, "secateur evaluate again"]
    assert merged.reference == first.reference
    rates = [merged.reference_measurements(one)["rate"].value for one in merged.candidates]
    assert rates == [first.reference.measurements["rate"].value, second.reference.measurements["rate"].value]
    (pair,) = merged.pairs
    assert (pair.candidate, pair.against, pair.measurement) == ("a", "b", "psnr")
    assert pair.difference.mean == pytest.approx(-1.0)


def test_merging_in_steps_is_merging_at_once() -> None:
    runs = [record(subject(name, psnr=VIEWS), runs=(run(command=name),)) for name in "abc"]
    at_once = merge_records(runs, ["1", "2", "3"])
    stepwise = merge_records([merge_records(runs[:2], ["1", "2"]), runs[2]], ["12", "3"])
    assert replace(at_once, details={}) == replace(stepwise, details={})


def test_a_run_alone_is_itself() -> None:
    one = record(subject("a", psnr=VIEWS), subject("b", psnr=VIEWS), details={"more": 1})
    assert merge_records([one], ["one"]) == replace(one, pairs=candidate_pairs(one.candidates))


def test_names_stay_apart_and_equal_candidates_come_once() -> None:
    first = record(subject("a"), subject("b"))
    second = record(subject("a"), subject("b", sha256="other bytes"))
    merged = merge_records([first, second, second], ["one", "two", "three"])
    assert [one.name for one in merged.candidates] == ["a", "one: b", "two: b"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (record(kind="vit"), "two is a run of the kind 'vit', one one of 'splat'"),
        (record(reference=subject("whole", sha256="others")), r"two has another reference \(whole\)"),
        (record(protocol={"views": 8}), "two was measured otherwise than one: views is 8, and there 4"),
        (record(protocol={"views": 4, "up": "y"}), "up is y, and there None"),
    ],
)
def test_runs_that_do_not_fit_together_are_refused(other: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        merge_records([record(), other], ["one", "two"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="no runs"):
        merge_records([], [])


def test_a_reference_without_a_file_is_known_by_what_it_measures() -> None:
    def made(size: int, frame: tuple[float, float], name: str = "whole") -> Subject:
        return replace(subject(name, size=size, frame=frame), sha256=None)

    first = record(reference=made(10, (1.0, 2.0)))
    merge_records([first, record(reference=made(10, (5.0, 6.0)))], ["one", "two"])
    for other in (made(11, (1.0, 2.0)), made(10, (1.0, 2.0), "another")):
        with pytest.raises(ValueError, match="another reference"):
            merge_records([first, record(reference=other)], ["one", "two"])


def test_pairs_need_the_same_samples() -> None:
    a, b, short = (subject(name, psnr=views) for name, views in (("a", VIEWS), ("b", VIEWS), ("c", VIEWS[:3])))
    assert [(pair.candidate, pair.against) for pair in candidate_pairs([a, b, short])] == [("a", "b")]
    equal = subject("d", psnr=(float("inf"), *VIEWS[1:]))
    assert candidate_pairs([a, equal]) == ()
