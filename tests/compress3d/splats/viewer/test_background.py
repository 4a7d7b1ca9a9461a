import threading

from compress3d.splats.viewer.background import Background


def test_of_many_requests_only_the_last_counts() -> None:
    started, go, runs = threading.Event(), threading.Event(), []

    def work() -> None:
        runs.append(len(runs))
        started.set()
        go.wait(10)

    background = Background(work, failed=lambda error: None)
    background.request()
    assert started.wait(10) and not background.wait(0.01)
    for _ in range(20):
        background.request()
    go.set()
    assert background.wait(10) and runs == [0, 1]
    background.close()


def test_work_that_fails_is_told_and_tried_again() -> None:
    told: list[Exception] = []

    def work() -> None:
        raise ValueError("no such thing")

    background = Background(work, told.append)
    for count in (1, 2):
        background.request()
        assert background.wait(10) and len(told) == count
    background.close()
    assert background.wait(0)
