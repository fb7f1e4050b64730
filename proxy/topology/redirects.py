"""What is sent again: redirections, commands of a lost lane, and holds that come to their end."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable

import structlog
import trio

from proxy.dataplane import READONLY, Client, DataPlane, Handed, Lane, Lost, Request
from proxy.settings import TimeoutSettings
from proxy.topology.cluster import Cluster
from proxy.topology.doubts import Doubts
from proxy.topology.elsewhere import IN_A_SCRIPT, sent_elsewhere
from proxy.topology.groups import Group, Held
from proxy.topology.lanes import Lanes
from proxy.topology.owners import Owner, Use

REDIRECTIONS = 16  # followed for one command at once, as cluster clients do; then it is tried more slowly
RETRY = 0.02  # seconds before a command that met "not now" is sent again ...
RETRIES = 10_000  # ... or longer, so that no more than so many are in a second, up to
SLOWEST_RETRY = 0.5  # seconds
AT_A_TIME = 200  # groups of them after which everything else has its turn
UNSETTLED = 10.0  # seconds behind the last sign of a slot that moves key by key, for which others are expected
PIPELINED = 100  # answers of one client's pipeline that are given in one look for holds whose time is up
SWEEP = 0.1  # seconds between two looks for holds and lanes whose time is up
UNKNOWN = (
    b"-ERR the connection to the shard was lost while this command was under way: its outcome is unknown, "
    b"read before you write it again\r\n"
)
NOT_SENT_AGAIN = b"-ERR the connection to the shard was lost before this command's reply: send it again\r\n"
NOT_SERVED = b"-CLUSTERDOWN no primary served this slot within %g s: send the command again\r\n"
HELD_TOO_MUCH = b"-CLUSTERDOWN too many commands wait for a primary of this slot: send the command again later\r\n"


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
        self.doubts = Doubts(plane, cluster, lanes, timeouts)
        self.log = structlog.get_logger("topology")
        self.counts = {"moved": 0, "ask": 0, "tryagain": 0, "holds": 0, "hold_timeouts": 0, "outcome_unknown": 0}
        self._lost_write = lost_write
        self._one_by_one = one_by_one
        self._unsettled_until = 0.0
        self._held: dict[Lane, dict[Client | None, Group]] = {}
        self._later: deque[tuple[float, Group, int]] = deque()
        self._later_commands: defaultdict[int, int] = defaultdict(int)
        self._later_bytes: defaultdict[int, int] = defaultdict(int)
        """By shard, of what is tried again later."""
        self._given_up: dict[Client, float] = {}
        """Clients of which a command was held for as long as may be, and when: what they had sent by then is not held
        once more."""
        self._due = trio.Event()
        self.prepare: Callable[[Request, Lane], None] = lambda request, lane: None
        """Told of each request that is about to be put on a lane once more: it may need something in front of it."""

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._retry_for_ever)
            nursery.start_soon(self._sweep_for_ever)

    # -- replies that say "not here" or "not now" --------------------------------------------------------
    def held_back(self, request: Request, lane: Lane, frame: bytes) -> None:
        """Follow a redirection, or try again a little later."""
        owner: Owner = lane.owner
        words = frame[1:-2].split(b" ")
        of_a_script = IN_A_SCRIPT in frame or (words[0] in (b"MOVED", b"ASK") and not sent_elsewhere(request, words))
        if owner.leased or request.sticks or of_a_script:
            if of_a_script and request.write and request.client is not None:
                request.client.wrote(lane)  # it may have written before it failed
            self.plane.answer(request, frame)
            return
        request.attempts += 1
        later = request.attempts > REDIRECTIONS
        group = self._group(request, lane)
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
        if later:
            group.slow = True
            self._refused(group, Held(request, asked, frame), lane)
        else:
            group.held.append(Held(request, asked))

    def missed(self, request: Request, lane: Lane, frame: bytes) -> Callable[[bool], None]:
        """A request did not run because the shard lacks something, which its reply ``frame`` says and which is about
        to be brought.

        To be called when that is done: with True it is sent again, in its client's order, with False the reply is
        passed on.  It is passed on in any case if something has run that must not run before it.
        """
        group = self._group(request, lane)
        held = Held(request, refusal=frame)
        self._refused(group, held, lane)
        group.awaited += 1

        def decided(again: bool) -> None:
            group.awaited -= 1
            if not again:
                held.answered = True
                self.plane.answer(request, frame)

        return decided

    def _group(self, request: Request, lane: Lane) -> Group:
        return self._held.setdefault(lane, {}).setdefault(request.client, Group())

    def _refused(self, group: Group, held: Held, lane: Lane) -> None:
        if group.behind is None:
            group.mark = len(group.held)
            group.behind = self.plane.behind(held.request, lane) if held.request.client is not None else []
        group.held.append(held)

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
                for client, group in list(groups.items()):
                    if not group.awaited and (client is None or client not in busy):
                        self._go_on(groups.pop(client), lane.shard)
                if not groups:
                    del self._held[lane]

    def _go_on(self, group: Group, shard: int) -> None:
        """What was refused is tried again, unless something behind it has run that must not run before it."""
        if group.behind is not None:
            overtaking = group.overtaking()
            group.held = [each for each in group.held if not (each.answered or self._told_overtaken(each, overtaking))]
        if group.slow:
            self._go_on_later(group, shard)
            return
        for held in group.held:
            self.send_again(held.request, shard, held.asked)

    def _go_on_later(self, group: Group, shard: int) -> None:
        limits = self.plane.limits
        while group.held and (
            self._later_commands[shard] + len(group.held) > limits.held_commands
            or self._later_bytes[shard] + group.size > limits.held_bytes
        ):
            self.plane.answer(group.held.pop().request, HELD_TOO_MUCH)
        if not group.held:
            return
        self._later_commands[shard] += len(group.held)
        self._later_bytes[shard] += group.size
        pause = min(max(RETRY, sum(self._later_commands.values()) / RETRIES), SLOWEST_RETRY)
        self._later.append((trio.current_time() + pause, group, shard))
        self._due.set()

    def _told_overtaken(self, held: Held, overtaking: Counter[tuple[int, int]]) -> bool:
        request = held.request
        if held.refusal is None:
            return False
        # Reads without a key run whatever becomes of the slots (DBSIZE): what they tell is of the moment anyway.
        flags = self.plane.command_flags
        keyed = [each for each in overtaking if each[0] >= 0 or not flags[each[1]] & READONLY]
        if not self._conflicts(request, keyed):
            return False
        self.plane.answer(request, held.refusal)
        return True

    def _conflicts(self, request: Request, others: Iterable[tuple[int, int]]) -> bool:
        """Whether the order of a request and one of the others, (slot, command id), can make a difference."""
        flags = self.plane.command_flags
        reads = flags[request.command_id] & READONLY
        return any(
            (slot < 0 or slot == request.slot) and not (reads and flags[command_id] & READONLY)
            for slot, command_id in others
        )

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
        torn = self._conflicts(request, self.plane.behind(request, lane))
        if torn:
            self.plane.answer(request, frame)
        return torn

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
            self._put(request, self._lanes_of(request)[asked], asking=True)
            return
        if request.slot >= 0:
            shard = self.plane.shard_of_slot[request.slot]
        self._put(request, self._lanes_of(request)[shard])

    def _put(self, request: Request, lane: Lane, asking: bool = False) -> None:
        self.prepare(request, lane)
        self.plane.resubmit(request, lane, asking)

    async def _retry_for_ever(self) -> None:
        while True:
            await self._due.wait()
            self._due = trio.Event()
            while self._later:
                await trio.sleep_until(self._later[0][0])
                with self.plane.turn():
                    for _ in range(AT_A_TIME):
                        if self._later and self._later[0][0] <= trio.current_time():
                            self._retry(*self._later.popleft()[1:])

    def _retry(self, group: Group, shard: int) -> None:
        self._later_commands[shard] -= len(group.held)
        self._later_bytes[shard] -= group.size
        for held in group.held:
            self.send_again(held.request, shard)

    # -- lost lanes ---------------------------------------------------------------------------------------------
    def lane_down(self, lane: Lane, lost: list[Lost], reason: str) -> None:
        """Sort out what was under way: sent again if it provably did not run or changes nothing, else an error."""
        owner: Owner = lane.owner
        say = self.log.debug if owner.use is Use.BLOCK else self.log.warning  # thousands may block on one node
        say("lane lost", shard=owner.shard, reason=reason, under_way=len(lost), leased=owner.leased)
        self.lanes.gone(lane)
        self.cluster.hint()
        if any(self._may_come_late(each) for each in lost) and self.lanes.beware(lane):
            self.plane.fence_all()
        if owner.leased:
            self._leased_down(lane, lost)
            return
        for request, keep in self._sort(lane, lost):
            if keep:
                self.counts["holds"] += 1
                self._group(request, lane).held.append(Held(request))
        self.flush()

    def _may_come_late(self, lost: Lost) -> bool:
        """Whether the shard may carry it out when its client has long been told that nobody knows."""
        request, handed = lost
        if handed is not Handed.WHOLLY or request.client is None:
            return False
        return not self.plane.command_flags[request.command_id] & READONLY

    def _leased_down(self, lane: Lane, lost: list[Lost]) -> None:
        """A leased lane's commands are its session's affair: it is told, nothing is sent again."""
        with self.plane.turn():
            for request, handed in lost:
                unknown = request.write and handed is Handed.WHOLLY
                if unknown and not (request.client is not None and request.client.closed):
                    self.counts["outcome_unknown"] += 1
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
                if request.write and handed is Handed.WHOLLY:
                    unknown.add(request.client)
            elif not keep and self.plane.command_flags[request.command_id] & READONLY:
                # One that took so long hung this lane: it is not to hang the next one for everybody, again and again.
                hung = self.plane.now - request.born > self.timeouts.command
                keep = request.client not in unknown and not hung
            elif not keep:
                unknown.add(request.client)
            verdicts.append((request, keep))
        verdicts.reverse()
        with self.plane.turn():
            for (request, keep), (_, handed) in zip(verdicts, lost, strict=True):
                if not keep:
                    self._fail(request, lane, handed)
        return verdicts

    def _fail(self, request: Request, lane: Lane, handed: Handed) -> None:
        if request.sticks:
            certain = not (request.write and handed is Handed.WHOLLY)  # EXEC on a lane of its session's own
        else:
            certain = bool(self.plane.command_flags[request.command_id] & READONLY)
        if certain:
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

    def sift(self, lane: Lane) -> None:
        """Take off what clients that are gone had parked on a lane."""
        with self.plane.turn():
            for request in self.plane.reclaim(lane):
                if request.client is not None and request.client.closed:
                    request.answer(NOT_SENT_AGAIN)
                else:
                    self._put(request, lane)

    # -- holds ----------------------------------------------------------------------------------------------------
    def routes_changed(self) -> None:
        """What is parked goes where its slot is served now."""
        with self.plane.turn():
            for lanes in self.lanes.sets.values():
                parked = [
                    (request, lane) for lane in lanes if not lane.attached for request in self.plane.reclaim(lane)
                ]
                for request, lane in sorted(parked, key=lambda each: each[0].born):
                    if request.sticks and request.client is None:
                        self.plane.resubmit(request, lane)  # it is about this lane
                    else:
                        self.send_again(request, lane.shard)

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
            self._expire_holds()
            with self.plane.turn():
                self.flush()
                self._settle_down()
                self._bound_holds()
                self.doubts.sweep()

    def _parking(self) -> list[Lane]:
        """The lanes on which something is parked."""
        return [lane for lanes in self.lanes.sets.values() for lane in lanes if not lane.attached and lane.fifo]

    def _expire_holds(self) -> None:
        for client, since in list(self._given_up.items()):
            if client.closed or client.last_read > since:
                del self._given_up[client]
        for _ in range(PIPELINED):  # what a client's last answer lets go is looked at, too
            with self.plane.turn():
                late = [lane for lane in self._parking() if self._is_late(lane)]
                for lane in late:
                    self._expire(lane)
            if not late:
                return

    def _is_late(self, lane: Lane) -> bool:
        if self.plane.lane_age(lane) > self.timeouts.hold:
            return True
        return bool(self._given_up) and not self._given_up.keys().isdisjoint(self.plane.clients_on(lane))

    def _expire(self, lane: Lane) -> None:
        text = NOT_SERVED % self.timeouts.hold
        for request in self.plane.reclaim(lane):
            if self.plane.now - request.born > self.timeouts.hold or request.client in self._given_up:
                self.counts["hold_timeouts"] += 1
                if request.client is not None:
                    self._given_up[request.client] = self.plane.now
                self.plane.answer(request, text)
            else:
                self._put(request, lane)

    def _bound_holds(self) -> None:
        """Of all that is parked for a shard, whoever it is from, no more than may be."""
        limits = self.plane.limits
        commands: Counter[int] = Counter()
        sizes: Counter[int] = Counter()
        parking = self._parking()
        for lane in parking:
            commands[lane.shard] += len(lane.out)
            sizes[lane.shard] += lane.held_bytes
        for shard in commands:
            if commands[shard] > limits.held_commands or sizes[shard] > limits.held_bytes:
                self._shed([lane for lane in parking if lane.shard == shard])

    def _shed(self, lanes: list[Lane]) -> None:
        """Refuse the newest of what is parked on these lanes."""
        limits = self.plane.limits
        parked = [(request, lane) for lane in lanes for request in self.plane.reclaim(lane)]
        parked.sort(key=lambda each: each[0].born)
        size = 0
        for commands, (request, lane) in enumerate(parked, 1):
            size += len(request.raw)
            if commands > limits.held_commands or size > limits.held_bytes:
                self.plane.answer(request, HELD_TOO_MUCH)
            else:
                self._put(request, lane)

    def held_for(self, shard: int) -> int:
        """Commands parked for one shard now."""
        return sum(len(lane.out) for lane in self._parking() if lane.shard == shard) + self._later_commands[shard]

    @property
    def fill(self) -> float:
        """How full the fullest shard's queue is, of what may be parked; 1.0: the newest are refused."""
        limits = self.plane.limits
        commands, sizes = Counter(self._later_commands), Counter(self._later_bytes)
        for lane in self._parking():
            commands[lane.shard] += len(lane.out)
            sizes[lane.shard] += lane.held_bytes
        fills = [count / limits.held_commands for count in commands.values()]
        return max((*fills, *(size / limits.held_bytes for size in sizes.values())), default=0.0)

    @property
    def held(self) -> tuple[int, int]:
        """(commands, bytes) parked now."""
        lanes = self._parking()
        commands = sum(len(lane.out) for lane in lanes) + sum(self._later_commands.values())
        return commands, sum(lane.held_bytes for lane in lanes) + sum(self._later_bytes.values())
