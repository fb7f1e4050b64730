"""Progress on standard error: a spinner on a terminal, a plain line a step elsewhere. Standard output is never
touched."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status


class Progress:
    """A context in which steps are told; called as ``progress(step, done, total)``."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._status: Status | None = None
        self._told: set[str] = set()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._status = self._console.status("starting")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pause()

    def pause(self) -> None:
        """Takes the spinner away for good, before something else writes to the terminal."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def __call__(self, step: str, done: int, total: int) -> None:
        text = f"{step} {done}/{total}" if total > 1 else step
        if self._status is not None:
            self._status.update(text)
        elif step not in self._told:  # a log file wants each step once, not every count of it
            self._console.print(f"ackgate: {step}", markup=False, soft_wrap=True)
        self._told.add(step)

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(f"ackgate: {text}", markup=False, soft_wrap=True)
