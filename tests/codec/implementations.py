"""The implementations of the codec's hot functions that this installation has, side by side."""

import importlib
from collections.abc import Callable
from typing import NamedTuple

from proxy.codec import Command, ReplyState, RequestState


class Implementation(NamedTuple):
    name: str
    parse_requests: Callable[..., tuple[list[Command], int, RequestState | None]]
    frame_replies: Callable[..., tuple[list[bytes], int, ReplyState | None]]
    split_keys: Callable[..., list[Command] | None]
    join_elements: Callable[..., bytes | None]
    sum_integers: Callable[..., bytes | None]


def implementation(name: str) -> Implementation:
    """One of "python" and "cython". Raises ImportError where the latter was not built."""
    module = importlib.import_module("proxy.codec._python" if name == "python" else "proxy.codec._compiled")
    return Implementation(name, *(getattr(module, function) for function in Implementation._fields[1:]))
