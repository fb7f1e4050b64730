"""One command on its way through control."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

from proxy.dataplane import Request
from proxy.routing import Command
from proxy.sessions.session import Session

Step = Coroutine[Any, Any, None]


class Call(NamedTuple):
    """A command that control deals with: whose it is, its place, its words, and what the engine says of it."""

    session: Session
    request: Request
    args: Sequence[bytes]
    command: Command


Handler = Callable[[Call], "Step | None"]
"""Deals with a call at once, or returns what is to be awaited for it."""
