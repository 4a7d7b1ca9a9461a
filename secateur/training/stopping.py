"""Ctrl-C and SIGTERM while training: heeded between steps, where everything fits together."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody has asked to stop."""

    made: bool = False

    def listen(self) -> None:
        """Take the first Ctrl-C or SIGTERM as a request, and the second as an order: a KeyboardInterrupt.

        A signal that the process ignores stays ignored, and only the main thread can listen.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._heard)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.made:
            raise KeyboardInterrupt
        self.made = True


@contextmanager
def signals_put_back() -> Iterator[None]:
    """Afterwards signals are handled as before: Lightning leaves Ctrl-C ignored once it has struck."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in _SIGNALS} if main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
