"""The implementations of the codec's two hot functions that this installation has, side by side."""

import importlib
from collections.abc import Callable
from typing import NamedTuple

from proxy.codec import Command, ReplyState, RequestState


class Implementation(NamedTuple):
    name: str
    parse_requests: Callable[..., tuple[list[Command], int, RequestState | None]]
    frame_replies: Callable[..., tuple[list[bytes], int, ReplyState | None]]


def implementation(name: str) -> Implementation:
    """One of "python" and "cython". Raises ImportError where the latter was not built."""
    module = importlib.import_module("proxy.codec._python" if name == "python" else "proxy.codec._compiled")
    return Implementation(name, module.parse_requests, module.frame_replies)
