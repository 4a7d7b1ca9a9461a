"""One thread that brings the picture up to date: of many requests that come while it works, only the last counts."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Runs `work` once after each request, and once for all requests that came while it ran.

    Args:
        work: what to do; it looks up by itself what is asked for.
        failed: told of an exception that `work` raised; the thread goes on.
    """

    def __init__(self, work: Callable[[], None], failed: Callable[[Exception], None]) -> None:
        self._work = work
        self._failed = failed
        self._state = threading.Condition()
        self._asked = self._working = self._closed = False
        self._thread = threading.Thread(target=self._run, name="secateur viewer", daemon=True)
        self._thread.start()

    def request(self) -> None:
        """Ask for `work` to be done; returns at once."""
        with self._state:
            self._asked = True
            self._state.notify_all()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until nothing is asked for any more; False if that took longer than `seconds`."""
        with self._state:
            return self._state.wait_for(lambda: self._closed or not (self._asked or self._working), seconds)

    def close(self, seconds: float = 1.0) -> None:
        """End the thread after the work at hand, and wait `seconds` for it."""
        with self._state:
            self._closed = True
            self._state.notify_all()
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._state:
                self._working = False
                self._state.notify_all()
                self._state.wait_for(lambda: self._asked or self._closed)
                if self._closed:
                    return
                self._asked, self._working = False, True
            try:
                self._work()
            except Exception as error:
                self._failed(error)
