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


def test_the_first_call_is_told_apart_and_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a first call compiles shows in its own time alone. The clock stands still but for what is drawn."""
    now = [0.0]
    monkeypatch.setattr("secateur.metrics.speed.time.perf_counter", lambda: now[0])

    def draw(frame: int) -> None:
        now[0] += 0.004 if now[0] else 2.0

    speed = measure_speed(draw, frames=2, repeats=3)
    assert speed.first_call_ms == pytest.approx(2000.0)
    assert speed.times_ms == pytest.approx((4.0, 4.0, 4.0)) and speed.clock == "host"
    assert speed.median_ms == pytest.approx(4.0) and speed.frames_per_second == pytest.approx(250.0)


def test_on_a_device_events_take_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for CUDA: events read a clock that goes 6 ms a frame, whatever the host's does."""
    clock = [0.0]

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = clock[0]

        def synchronize(self) -> None: ...

        def elapsed_time(self, end: "Event") -> float:
            return end.at - self.at

    for name, stand_in in (("is_available", True), ("is_initialized", True), ("synchronize", None)):
        monkeypatch.setattr(torch.cuda, name, lambda stand_in=stand_in: stand_in)
    monkeypatch.setattr(torch.cuda, "Event", Event)

    def draw(_: int) -> None:
        clock[0] += 6.0

    speed = measure_speed(draw, frames=3, repeats=2)
    assert (speed.clock, speed.times_ms, speed.first_call_ms) == ("cuda", (6.0, 6.0), 6.0)


@pytest.mark.gpu
def test_a_gpu_s_work_is_waited_for() -> None:
    matrix = torch.randn(4096, 4096, device="cuda")
    speed = measure_speed(lambda _: matrix @ matrix, frames=4, repeats=3)
    assert speed.clock == "cuda" and speed.minimum_ms > 0.01


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
