"""Stopping a run between two steps when the user or the system asks for it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """A run was stopped by a signal after a whole step.

    Left alone it ends the process with the status that shells expect: 128 + signal, 130 for Ctrl-C and 143
    for SIGTERM.

    Parameters
    ----------
    signum
        The signal.
    step
        Steps that were finished.
    saved_to
        Checkpoint that holds them, or None.

    Examples
    --------
    >>> Interrupted(2, step=7, saved_to="run.ckpt").code
    130
    """

    def __init__(self, signum: int, *, step: int, saved_to: str | None) -> None:
        super().__init__(128 + signum)
        self.step = step
        self.saved_to = saved_to

    def __str__(self) -> str:
        return f"stopped after step {self.step}, " + (
            f"saved to {self.saved_to}" if self.saved_to else "not saved"
        )


@contextmanager
def first_signal() -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM in the list; a second one has its usual effect at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python delivers signals to the main thread only
        return

    def remember(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        give_back()

    def give_back() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    # A handler that C code has installed reads as None and cannot be put back: the default stands in.
    previous = {number: signal.getsignal(number) or signal.SIG_DFL for number in _SIGNALS}
    for number in _SIGNALS:
        signal.signal(number, remember)
    try:
        yield received
    finally:
        give_back()


def leave_signals_to_the_parent(worker: int) -> None:
    """For the processes of a loader: Ctrl-C reaches the whole group, but only the parent may stop the run.

    They leave the group rather than ignore the signals, with which the parent ends them when it exits.
    """
    os.setpgid(0, 0)
