"""What clients, lanes and entries see of the plane and of each other: the fields that every event touches.

Apart, and below the classes that fill them, so that where the data plane is compiled (see setup.py) these fields are
reached without a look-up.
"""

from __future__ import annotations

import math
import select
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from proxy.codec import Limits as CodecLimits
from proxy.codec import ParseTable
from proxy.dataplane.contract import Control, Limits
from proxy.dataplane.tally import Tally, Widths

if TYPE_CHECKING:
    from proxy.dataplane.client import Client
    from proxy.dataplane.lane import Lane
    from proxy.dataplane.requests import Hold, Sample, Splitter

    ConcernOf = Callable[[Client, bytes], int]
    """The class of write concern of a client's raw request; 0 for none."""

SLOTS = 16384
NO_SHARD = -1  # the index of the lane that stands for "no shard serves this slot"


class Counters:
    """Totals since the start; read by the metrics at scrape time."""

    __slots__ = (
        "accepted",
        "bytes_in",
        "bytes_out",
        "commands",
        "lane_losses",
        "protocol_errors",
        "pushes",
        "refused",
        "shard_bytes_in",
        "shard_bytes_out",
        "splits",
        "subscribers_cut",
    )

    def __init__(self) -> None:
        self.accepted = 0
        self.refused = 0
        self.commands = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.shard_bytes_in = 0
        self.shard_bytes_out = 0
        self.lane_losses = 0
        self.splits = 0
        self.protocol_errors = 0
        self.pushes = 0
        self.subscribers_cut = 0


class Traffic:
    """What went over all lanes of one shard since the start."""

    __slots__ = ("bytes_in", "bytes_out", "connects", "losses")

    def __init__(self) -> None:
        self.bytes_in = 0
        self.bytes_out = 0
        self.connects = 0
        self.losses = 0


class Handler:
    """Who is told of the events of a descriptor."""

    __slots__ = ()

    def on_event(self, mask: int) -> None:
        raise NotImplementedError


class Plane:
    """The state of one data plane."""

    def __init__(self, control: Control, limits: Limits, watched: tuple[bytes, ...], now: float) -> None:
        self.control = control
        self.limits = limits
        # A bound beyond what a compiled field holds is none.
        self.max_query = min(limits.query, sys.maxsize)
        self.max_commands = min(limits.outstanding_commands, sys.maxsize)
        self.max_bytes = min(limits.outstanding_bytes, sys.maxsize)
        self.max_total = min(limits.outstanding_total, sys.maxsize)
        self.max_output = min(limits.output, sys.maxsize)
        self.max_pushed = min(limits.pushed, sys.maxsize)
        self.soft_pushed = min(limits.pushed_soft, sys.maxsize)
        self.soft_seconds = limits.pushed_seconds
        self.pending_bytes = 0
        """Of requests without a reply, all clients together."""
        self.watched = watched
        self.counters = Counters()
        self.traffic: dict[int, Traffic] = {}
        """By shard index, of those that have had lanes."""
        self.tally: Tally | None = Tally()
        """What is counted of each command; None: nothing is."""
        self.split_parts = Widths()
        """Into how many parts commands were split."""
        self.now = now
        self.epoll = select.epoll()
        self.table = ParseTable((), CodecLimits())
        self.command_flags: bytes = b"\0"
        self.splitters: Mapping[int, Splitter] = {}
        self.shard_of_slot: list[int] = [NO_SHARD] * SLOTS
        self.dirty_lanes: list[Lane] = []
        self.dirty_clients: list[Client] = []
        self.ready: list[Client] = []
        self.holds: list[Hold] = []
        """Open ones: control takes each (``take_hold``), after the turn in which it was opened or later."""
        self.concern_of: ConcernOf = _no_concern
        self.sample_every = math.inf
        """Seconds from the reply to a command that was timed to the next one timed on its lane."""
        self.samples: list[Sample] = []
        """Timed ones: control takes them (``take_samples``) after each turn."""
        self.errands: list[Callable[[], None]] = []
        """What control does once, before what was put on lanes in this turn is sent (``at_end``)."""


def _no_concern(client: Client, raw: bytes) -> int:
    return 0


class Party(Handler):
    """What a batch of commands knows of its client."""

    __slots__ = ("dirty", "kept_bytes", "pending", "plane")

    def __init__(self, plane: Any) -> None:
        self.plane = plane
        self.dirty = False
        """It has replies to be passed on at the end of the turn."""
        self.pending = 0
        """Commands parsed and not yet answered."""
        self.kept_bytes = 0
        """Bytes of replies that are kept back until their writes are acknowledged."""
