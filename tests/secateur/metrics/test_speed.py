import pytest
import torch

from secateur.metrics.speed import measure_speed, pinned_threads


def test_each_frame_is_drawn_once_to_warm_up_and_once_a_repeat() -> None:
    drawn: list[int] = []
    speed = measure_speed(drawn.append, frames=3, repeats=4)
    assert drawn == [0, 1, 2] * 5
    assert speed.frames == 3 and speed.repeats == 4
    assert 0 < speed.minimum_ms <= speed.median_ms
    assert speed.frames_per_second == pytest.approx(1000 / speed.median_ms)


def test_threads_are_pinned_while_timing_and_given_back() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    speed = measure_speed(lambda _: seen.append(torch.get_num_threads()), frames=1, repeats=2, threads=1)
    assert set(seen) == {1} and speed.threads == 1
    assert torch.get_num_threads() == before


def test_threads_are_given_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), pinned_threads(1):
        raise RuntimeError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("frames", "repeats"), [(0, 1), (1, 0)])
def test_nothing_to_time_is_refused(frames: int, repeats: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        measure_speed(lambda _: None, frames=frames, repeats=repeats)
