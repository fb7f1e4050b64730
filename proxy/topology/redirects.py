"""What is sent again: redirections, commands of a lost lane, and holds that come to their end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import structlog
import trio

from proxy.codec import decode_request
from proxy.dataplane import READONLY, Client, DataPlane, Handed, Lane, Lost, Request
from proxy.settings import TimeoutSettings
from proxy.topology.cluster import Cluster
from proxy.topology.lanes import Lanes, Owner, Use

WATCHED = (
    b"-MOVED ",
    b"-ASK ",
    b"-TRYAGAIN Multiple keys request",
    b"-CLUSTERDOWN The cluster is down",
    b"-CLUSTERDOWN Hash slot not served",
    b"-LOADING Valkey is loading",
    b"-LOADING Redis is loading",
    b"-READONLY You can't write against a read only replica",
    b"-READONLY Can not run script with write flag on readonly replica",
    b"-MASTERDOWN Link with MASTER is down",
)
"""Replies that say "not here" or "not now" and prove that nothing was executed.

In the engine's own words (server.c: createSharedObjects, cluster.c: clusterRedirectClient), not by their first word
alone: a script may return any error it likes behind what it wrote, and would be run again.
"""
IN_A_SCRIPT = b" script: "
"""The engine appends this to errors raised within a script, which may have written before it failed."""
SCRIPTS = frozenset({b"eval", b"eval_ro", b"evalsha", b"evalsha_ro", b"fcall", b"fcall_ro"})
REDIRECTIONS = 16  # followed for one command at once, as cluster clients do; then it is tried more slowly
RETRY = 0.02  # seconds before a command that met "not now" is sent again
UNSETTLED = 10.0  # seconds behind the last sign of a slot that moves key by key, for which others are expected
SWEEP = 0.1  # seconds between two looks for holds and lanes whose time is up

UNKNOWN = (
    b"-ERR the connection to the shard was lost while this command was under way: its outcome is unknown, "
    b"read before you write it again\r\n"
)
NOT_SENT_AGAIN = b"-ERR the connection to the shard was lost before this command's reply: send it again\r\n"
NOT_SERVED = b"-CLUSTERDOWN no primary served this slot within %g s: send the command again\r\n"
HELD_TOO_MUCH = b"-CLUSTERDOWN too many commands wait for a primary of this slot: send the command again later\r\n"


class Held(NamedTuple):
    """A request whose reply was held back."""

    request: Request
    asked: int | None
    """The shard that an ASK names."""
    later: bool
    """Not to be sent again at once."""


class Redirects:
    """See the module.

    ``lost_write(client, shard)`` is told when a write's outcome is unknown.  ``one_by_one(on)`` has commands of
    several keys sent alone while slots move key by key: one that meets TRYAGAIN has to be sent again, and what its
    client had sent behind it would overtake it.
    """

    def __init__(
        self,
        plane: DataPlane,
        cluster: Cluster,
        lanes: Lanes,
        timeouts: TimeoutSettings,
        *,
        lost_write: Callable[[Client, Lane], None],
        one_by_one: Callable[[bool], None],
    ) -> None:
        self.plane = plane
        self.cluster = cluster
        self.lanes = lanes
        self.timeouts = timeouts
        self.log = structlog.get_logger("topology")
        self.counts = {"moved": 0, "ask": 0, "tryagain": 0, "holds": 0, "hold_timeouts": 0, "outcome_unknown": 0}
        self._lost_write = lost_write
        self._one_by_one = one_by_one
        self._unsettled_until = 0.0
        self._held: dict[Lane, dict[Client | None, list[Held]]] = {}
        self._later: deque[tuple[float, list[Held], int]] = deque()
        self._due = trio.Event()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._retry_for_ever)
            nursery.start_soon(self._sweep_for_ever)

    # -- replies that say "not here" or "not now" --------------------------------------------------------
    def held_back(self, request: Request, lane: Lane, frame: bytes) -> None:
        """Follow a redirection, or try again a little later."""
        owner: Owner = lane.owner
        words = frame[1:-2].split(b" ")
        of_a_script = IN_A_SCRIPT in frame or (words[0] in (b"MOVED", b"ASK") and not _sent_elsewhere(request, words))
        if owner.leased or request.sticks or of_a_script:
            if of_a_script and request.write and request.client is not None:
                request.client.wrote(lane)  # it may have written before it failed
            self.plane.answer(request, frame)
            return
        request.attempts += 1
        later = request.attempts > REDIRECTIONS
        asked: int | None = None
        if words[0] == b"MOVED":
            self.counts["moved"] += 1
            host, port = self.cluster.address_in(words[2], owner.node_id)
            self.cluster.moved(int(words[1]), host, port)
        elif words[0] == b"ASK":
            self.counts["ask"] += 1
            self.unsettle()
            asked = self._asked(words, owner)
            later = later or asked is None
        else:
            self.counts["tryagain"] += 1
            later = True
            if words[0] != b"TRYAGAIN":
                self.cluster.hint()
            elif self._torn(request, lane, frame):
                return
        if later and self.plane.now - request.born > self.timeouts.hold:
            self.counts["hold_timeouts"] += 1
            self.plane.answer(request, frame)
            return
        self._hold(lane, Held(request, asked, later))

    def _hold(self, lane: Lane, held: Held) -> None:
        self._held.setdefault(lane, {}).setdefault(held.request.client, []).append(held)

    def flush(self) -> None:
        """Send again what was held back.  To be called behind every turn of the data plane.

        What one client had on one lane goes together, when nothing of it is left there: while routes change, a part
        sent again at once could come back and be overtaken by the rest.
        """
        if not self._held:
            return
        with self.plane.turn():
            for lane, groups in list(self._held.items()):
                busy = self.plane.clients_on(lane)
                for client in [each for each in groups if each is None or each not in busy]:
                    self._go_on(groups.pop(client), lane.shard)
                if not groups:
                    del self._held[lane]

    def _go_on(self, group: list[Held], shard: int) -> None:
        if any(held.later for held in group):
            self._later.append((trio.current_time() + RETRY, group, shard))
            self._due.set()
            return
        for held in group:
            self.send_again(held.request, shard, held.asked)

    def unsettle(self) -> None:
        """A slot moves key by key."""
        if not self._unsettled_until:
            self.log.info("slots move key by key")
            self._one_by_one(True)
        self._unsettled_until = trio.current_time() + UNSETTLED

    def _settle_down(self) -> None:
        if 0 < self._unsettled_until < trio.current_time():
            self._unsettled_until = 0.0
            self._one_by_one(False)

    def _torn(self, request: Request, lane: Lane, frame: bytes) -> bool:
        """TRYAGAIN.  Should its client have sent more already that must not run before it, the client is told."""
        self.unsettle()
        flags = self.plane.command_flags
        reads = flags[request.command_id] & READONLY
        for slot, command_id in self.plane.behind(request, lane):
            if (slot < 0 or slot == request.slot) and not (reads and flags[command_id] & READONLY):
                self.plane.answer(request, frame)
                return True
        return False

    def _asked(self, words: list[bytes], owner: Owner) -> int | None:
        shard = self.cluster.map.find(*self.cluster.address_in(words[2], owner.node_id))
        if shard is None:
            self.cluster.hint()
            return None
        return shard.index

    def _lanes_of(self, request: Request) -> list[Lane]:
        return request.client.lanes if request.client is not None else self.lanes.base

    def send_again(self, request: Request, shard: int, asked: int | None = None) -> None:
        """Send a request where its slot is served now, or where an ASK sent it; one without a slot to ``shard``."""
        if request.client is not None and request.client.closed:
            request.answer(NOT_SENT_AGAIN)  # a command of a client that is gone is dropped, as a server does
            return
        if asked is not None:
            self.plane.resubmit(request, self._lanes_of(request)[asked], asking=True)
            return
        if request.slot >= 0:
            shard = self.plane.shard_of_slot[request.slot]
        self.plane.resubmit(request, self._lanes_of(request)[shard])

    async def _retry_for_ever(self) -> None:
        while True:
            await self._due.wait()
            self._due = trio.Event()
            while self._later:
                await trio.sleep_until(self._later[0][0])
                with self.plane.turn():
                    while self._later and self._later[0][0] <= trio.current_time():
                        _, group, shard = self._later.popleft()
                        for held in group:
                            self.send_again(held.request, shard)

    # -- lost lanes ---------------------------------------------------------------------------------------------
    def lane_down(self, lane: Lane, lost: list[Lost], reason: str) -> None:
        """Sort out what was under way: sent again if it provably did not run or changes nothing, else an error."""
        owner: Owner = lane.owner
        say = self.log.debug if owner.use is Use.BLOCK else self.log.warning  # thousands may block on one node
        say("lane lost", shard=owner.shard, reason=reason, under_way=len(lost), leased=owner.leased)
        self.lanes.gone(lane)
        self.cluster.hint()
        if owner.leased:
            self._leased_down(lane, lost)
            return
        for request, keep in self._sort(lane, lost):
            if keep:
                self.counts["holds"] += 1
                self._hold(lane, Held(request, None, later=False))
        self.flush()

    def _leased_down(self, lane: Lane, lost: list[Lost]) -> None:
        """A leased lane's commands are its session's affair: it is told, nothing is sent again."""
        with self.plane.turn():
            for request, handed in lost:
                unknown = request.write and handed is Handed.WHOLLY
                if unknown and request.client is not None:
                    self._lost_write(request.client, lane)
                self.plane.answer(request, UNKNOWN if unknown else NOT_SENT_AGAIN)

    def _sort(self, lane: Lane, lost: list[Lost]) -> list[tuple[Request, bool]]:
        """(request, to be sent again) in order; the others are answered here.

        A read that was sent before a write of unknown outcome is not sent again: it would see what came after it.
        """
        unknown: set[Client | None] = set()
        verdicts: list[tuple[Request, bool]] = []
        for request, handed in reversed(lost):
            keep = handed is not Handed.WHOLLY and not request.sticks
            if request.sticks:
                pass
            elif not keep and self.plane.command_flags[request.command_id] & READONLY:
                # One that took so long hung this lane: it is not to hang the next one for everybody, again and again.
                hung = self.plane.now - request.born > self.timeouts.command
                keep = request.client not in unknown and not hung
            elif not keep:
                unknown.add(request.client)
            verdicts.append((request, keep))
        verdicts.reverse()
        with self.plane.turn():
            for request, keep in verdicts:
                if not keep:
                    self._fail(request, lane)
        return verdicts

    def _fail(self, request: Request, lane: Lane) -> None:
        if request.sticks or self.plane.command_flags[request.command_id] & READONLY:
            self.plane.answer(request, NOT_SENT_AGAIN)
            return
        self.counts["outcome_unknown"] += 1
        if request.client is not None and request.write:
            self._lost_write(request.client, lane)
        self.plane.answer(request, UNKNOWN)

    def denied(self, lane: Lane, frame: bytes) -> None:
        """A lane's user is not let in: who needs it is told in the engine's words, and closed."""
        with self.plane.turn():
            for request in self.plane.reclaim(lane):
                self.plane.answer(request, frame)
                if request.client is not None and not request.client.closed:
                    self.plane.finish(request.client)

    # -- holds ----------------------------------------------------------------------------------------------------
    def routes_changed(self) -> None:
        """What is parked goes where its slot is served now."""
        with self.plane.turn():
            for lanes in self.lanes.sets.values():
                parked = [
                    (request, lane.shard)
                    for lane in lanes
                    if not lane.attached
                    for request in self.plane.reclaim(lane)
                ]
                for request, shard in sorted(parked, key=lambda each: each[0].born):
                    self.send_again(request, shard)

    def held_too_much(self, lane: Lane) -> None:
        """Refuse the newest of what is parked on a lane until the rest is within the limits."""
        if lane.owner.leased:
            return  # one session's own, within what one session may have under way
        with self.plane.turn():
            for request in self.plane.shed(lane):
                self.plane.answer(request, HELD_TOO_MUCH)

    async def _sweep_for_ever(self) -> None:
        while True:
            await trio.sleep(SWEEP)
            with self.plane.turn():
                self.flush()
                self._settle_down()
                self._expire_holds()
                self._end_retiring()
                self._lose_hung()

    def _expire_holds(self) -> None:
        for lanes in self.lanes.sets.values():
            for lane in lanes:
                if not lane.attached and self.plane.lane_age(lane) > self.timeouts.hold:
                    self._expire(lane)

    def _expire(self, lane: Lane) -> None:
        text = NOT_SERVED % self.timeouts.hold
        for request in self.plane.reclaim(lane):
            if self.plane.now - request.born > self.timeouts.hold:
                self.counts["hold_timeouts"] += 1
                self.plane.answer(request, text)
            else:
                self.plane.resubmit(request, lane)

    def _end_retiring(self) -> None:
        for lane in list(self.lanes.retiring):
            owner: Owner = lane.owner
            if not lane.fifo:
                if not owner.leased:  # the session that has one gives it back
                    self.lanes.close(lane)
            elif not self.cluster.answers(owner.node_id):
                lane.lose("its node does not answer and has a successor")

    def _lose_hung(self) -> None:
        for lane in list(self.lanes.all_connected()):
            limit = self.timeouts.command
            owner: Owner = lane.owner
            age = self.plane.lane_age(lane)
            if age > limit + owner.patience or (age > limit < self.cluster.silence(owner.node_id)):
                lane.lose(f"no reply within {limit:g} s")

    @property
    def held(self) -> tuple[int, int]:
        """(commands, bytes) parked now."""
        lanes = [lane for lanes in self.lanes.sets.values() for lane in lanes if not lane.attached]
        later = sum(len(group) for _, group, _ in self._later)
        return sum(len(lane.out) for lane in lanes) + later, sum(lane.held_bytes for lane in lanes)


def _sent_elsewhere(request: Request, words: list[bytes]) -> bool:
    """Whether a MOVED or ASK is the engine's: it names the slot of the keys, and a script without keys gets none."""
    if len(words) != 3:
        return False
    if request.slot >= 0:
        return words[1] == b"%d" % request.slot
    return decode_request(request.raw)[0].lower() not in SCRIPTS
