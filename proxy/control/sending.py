"""Putting requests on lanes: to one slot, split, to every shard, to every node, on a lane of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from proxy.codec.reply import error
from proxy.control.call import Call
from proxy.dataplane import Client, DataPlane, Lane, Request, Widths
from proxy.routing import Part, Split, aggregate
from proxy.routing.slot_map import Node
from proxy.sessions.session import Session
from proxy.sessions.transaction import Places
from proxy.topology.cluster import Cluster
from proxy.topology.elsewhere import is_elsewhere
from proxy.topology.lanes import Lanes
from proxy.topology.logins import Denied
from proxy.topology.owners import Busy, Identity
from proxy.topology.redirects import NOT_SENT_AGAIN, UNKNOWN
from shard.client import ConnectionLost, ReplyError, format_address

NOT_SERVED = b"-CLUSTERDOWN no shard serves any slot: send the command again\r\n"


class Join:
    """Collects the replies of several parts and answers once all are in."""

    __slots__ = ("_combine", "_frames", "_missing")

    def __init__(self, parts: int, combine: Callable[[list[bytes]], None]) -> None:
        self._frames: list[bytes] = [b""] * parts
        self._missing = parts
        self._combine = combine

    def part(self, at: int) -> Callable[[bytes], None]:
        def replied(frame: bytes) -> None:
            self._frames[at] = frame
            self._missing -= 1
            if not self._missing:
                self._combine(self._frames)

        return replied


class Sender(Places):
    """See the module.  ``large_request`` bytes and more travel on a leased lane."""

    def __init__(
        self,
        plane: DataPlane,
        cluster: Cluster,
        lanes: Lanes,
        large_request: int,
        concern_of_user: Callable[[str], int] = lambda user: 0,
    ) -> None:
        self.plane = plane
        self.cluster = cluster
        self.lanes = lanes
        self.counts = {"splits": 0, "fanouts": 0}
        self.widths = Widths()
        """Of fan-outs."""
        self._any = -1
        self._large_request = large_request
        self._concern_of_user = concern_of_user

    def adopt(self, session: Session, identity: Identity) -> None:
        """Have a session's commands travel as this identity, and its writes be acknowledged as its user's are.

        Raises ``Busy`` when there are too many identities; nothing has changed then.
        """
        if session.client.closed:
            return  # it went while its password was looked at: nobody would leave the lanes again
        before, identity = session.identity, session.carry(identity)
        lanes = self.lanes.enter(identity)
        self.part(session)
        session.lanes = lanes
        session.identity = identity
        if session.subscriptions is not None:
            session.subscriptions.speak(identity.protocol)
        self.plane.set_lanes(session.client, lanes, self._concern_of_user(identity.user))
        if session.transaction is not None:
            session.transaction.follow(before, identity)
        if before.own and before != identity:
            self.lanes.drop(before)
            self.lanes.disturbed(before.own)

    def part(self, session: Session) -> None:
        """The session travels on no lanes any more."""
        if session.lanes is not None:
            self.lanes.leave(session.lanes)
            session.lanes = None

    def answer(self, request: Request, frame: bytes) -> None:
        """Answer, and let the client go on if it stood behind this command."""
        client = request.client
        assert client is not None
        session: Session = client.session
        if session.unheard:
            frame = session.heard(request, frame)
        if request.barrier:
            self.plane.answer_barrier(request, frame, client)
        else:
            self.plane.answer(request, frame)

    def answer_last(self, request: Request, frame: bytes) -> None:
        """Answer a barrier and close its client: nothing behind it is run."""
        client = request.client
        assert client is not None
        with self.plane.turn():
            self.plane.answer(request, client.session.heard(request, frame))
            self.plane.finish(client)

    def send(self, session: Session, request: Request, slot: int) -> None:
        """Put a request on the lane of its slot; its reply goes to the client as it is."""
        request.slot = slot
        self.send_to(session, request, self.shard_of(slot))

    def is_large(self, request: Request) -> bool:
        """Whether it is to have a lane to itself."""
        return request.barrier and len(request.raw) > self._large_request

    def send_to(
        self, session: Session, request: Request, shard: int, seen: Callable[[bytes], None] | None = None
    ) -> None:
        """``seen`` is told the reply first, of a request that has no lane to itself."""
        if seen is None and not request.barrier and request not in session.unheard:
            self.plane.resubmit(request, self.lane(session, shard))
        elif self.is_large(request) and shard >= 0:
            self._send_large(session, request, shard)
        else:
            self._submit(session, request, self.lane(session, shard), seen)

    def _send_large(self, session: Session, request: Request, shard: int) -> None:
        """A large request has a lane to itself, so that it holds up nobody else's."""
        try:
            lane = self.lanes.lease(session.identity, shard)
        except Busy:
            self._submit(session, request, self.lane(session, shard))
            return

        def replied(frame: bytes) -> None:
            unsent = lane.closed and not lane.sent  # it could not be connected: held like any other command
            elsewhere = unsent or is_elsewhere(request, frame)
            if elsewhere and not unsent:
                self.redirected(lane, frame)
            self.lanes.release(lane, clean=not lane.closed)
            if elsewhere:
                self._submit(session, request, self.lane(session, self.shard_of(request.slot)))
            else:
                self.answer(request, frame)

        self.plane.submit(
            lane,
            request.raw,
            replied,
            client=session.client,
            command_id=request.command_id,
            write=request.write,
            pinned=True,
        )

    def _submit(
        self, session: Session, request: Request, lane: Lane, seen: Callable[[bytes], None] | None = None
    ) -> None:
        """A request on a shared lane whose reply comes by here: a barrier's client goes on then."""

        def replied(frame: bytes) -> None:
            if seen is not None:
                seen(frame)
            self.answer(request, frame)

        self.plane.submit(
            lane,
            request.raw,
            replied,
            client=session.client,
            slot=request.slot,
            command_id=request.command_id,
            write=request.write,
        )

    def split(self, session: Session, request: Request, taken: Split) -> None:
        """A multi-key command: a part for each slot, one send for each lane."""
        self.counts["splits"] += 1
        self.plane.split_parts.add(len(taken.parts))
        join = Join(len(taken.parts), lambda frames: self.answer(request, taken.join(frames, unsure(frames))))
        with self.plane.turn():
            for at, part in enumerate(taken.parts):
                self._send_part(session, request, part, join.part(at))

    def _send_part(self, session: Session, request: Request, part: Part, replied: Callable[[bytes], None]) -> None:
        self.plane.submit(
            self.lane(session, self.shard_of(part.slot)),
            part.raw,
            replied,
            client=session.client,
            slot=part.slot,
            command_id=request.command_id,
            write=request.write,
        )

    def to_all_shards(self, call: Call) -> None:
        def combine(frames: list[bytes]) -> None:
            self.answer(call.request, aggregate(call.command, call.args, frames, call.session.protocol))

        self.fan_out(call.session, call.request, call.request.raw, combine)

    def fan_out(self, session: Session, request: Request, raw: bytes, combine: Callable[[list[bytes]], None]) -> None:
        """Send to every shard that serves slots, on the session's own lanes, behind what it sent before."""
        shards = self.cluster.serving()
        if not shards:
            self.answer(request, NOT_SERVED)
            return
        self.counts["fanouts"] += 1
        self.widths.add(len(shards))
        join = Join(len(shards), combine)
        with self.plane.turn():
            for at, shard in enumerate(shards):
                self.plane.submit(
                    self.lane(session, shard),
                    raw,
                    join.part(at),
                    client=session.client,
                    command_id=request.command_id,
                    write=request.write,
                )

    async def to_all_nodes(self, call: Call) -> None:
        """By the command's own policy: one reply of all nodes'."""
        self.answer(call.request, self.merged(call, await self.of_all_nodes(call)))

    def merged(self, call: Call, replies: list[tuple[str, bytes]]) -> bytes:
        """One reply of what ``of_all_nodes`` returned."""
        frames = [frame for _, frame in replies]
        return aggregate(call.command, call.args, frames, call.session.protocol) if frames else NOT_SERVED

    async def of_all_nodes(self, call: Call) -> list[tuple[str, bytes]]:
        """(address, reply) of primaries, then replicas; a node that the cluster holds for failed is none of it at the
        moment.
        """
        self.counts["fanouts"] += 1
        shards = [shard for shard in self.cluster.map.shards if shard.ranges]
        self.widths.add(len(shards))
        replicas = [node for shard in shards for node in shard.replicas if node.health != "fail"]
        frames: dict[int, bytes] = {}

        async def primary(at: int, shard: int) -> None:
            frames[at] = await self.ask(call.session, self.lane(call.session, shard), call.request.raw, call.request)

        async def replica(at: int, node: Node) -> None:
            try:
                lane = await self.lanes.lease_node(call.session.identity, node)
            except Denied as denied:
                frames[at] = error(str(denied))
                return
            except (ConnectionLost, ReplyError) as problem:
                frames[at] = error(f"ERR node {node.host}:{node.port} could not be reached ({problem}); try again")
                return
            try:
                frames[at] = await self.ask(call.session, lane, call.request.raw, pinned=True)
            finally:  # also when the client goes meanwhile
                self.lanes.release(lane, clean=False)

        async with trio.open_nursery() as nursery:
            for at, shard in enumerate(shards):
                nursery.start_soon(primary, at, shard.index)
            for at, node in enumerate(replicas, len(shards)):
                nursery.start_soon(replica, at, node)
        nodes = [*(shard.primary for shard in shards), *replicas]
        addresses = [format_address(node.host, node.port) if node is not None else "" for node in nodes]
        return [(address, frames[at]) for at, address in enumerate(addresses)]

    async def ask(
        self, session: Session, lane: Lane, raw: bytes, request: Request | None = None, pinned: bool = False
    ) -> bytes:
        """The raw reply to one request put on a lane."""
        if request is None:
            return await self._reply(lane, raw, client=session.client, pinned=pinned)
        command_id, write = request.command_id, request.write
        return await self._reply(
            lane, raw, client=session.client, command_id=command_id, write=write, pinned=pinned
        )

    async def ask_shard(self, shard: int, raw: bytes) -> bytes:
        """The raw reply of a shard's primary to a request of the proxy's own."""
        return await self._reply(self.lanes.base[shard], raw, pinned=True)

    async def _reply(
        self,
        lane: Lane,
        raw: bytes,
        client: Client | None = None,
        command_id: int = 0,
        write: bool = False,
        pinned: bool = False,
    ) -> bytes:
        if lane.closed:  # one that its session had to itself, and the session is gone
            return NOT_SENT_AGAIN
        done = trio.Event()
        frames: list[bytes] = []

        def replied(frame: bytes) -> None:
            frames.append(frame)
            done.set()

        self.plane.submit(lane, raw, replied, client=client, command_id=command_id, write=write, pinned=pinned)
        await done.wait()
        return frames[0]

    async def of_all(
        self, session: Session, shards: Sequence[int], raw: bytes, pinned: bool = False
    ) -> list[bytes]:
        frames: list[bytes] = [b""] * len(shards)

        async def one(at: int, shard: int) -> None:
            frames[at] = await self.ask(session, self.lane(session, shard), raw, pinned=pinned)

        async with trio.open_nursery() as nursery:
            for at, shard in enumerate(shards):
                nursery.start_soon(one, at, shard)
        return frames

    async def together(self, session: Session, lane: Lane, raws: Sequence[bytes]) -> list[bytes]:
        """The replies to requests sent in one packet to one node, and to no other."""
        done = trio.Event()
        frames: list[bytes] = []

        def replied(frame: bytes) -> None:
            frames.append(frame)
            if len(frames) == len(raws):
                done.set()

        with self.plane.turn():
            for raw in raws:
                self.plane.submit(lane, raw, replied, client=session.client, pinned=True)
        await done.wait()
        return frames

    def lane(self, session: Session, shard: int) -> Lane:
        return session.client.lanes[shard]

    def shard_of(self, slot: int) -> int:
        return self.plane.shard_of_slot[slot]

    def any_shard(self) -> int:
        """For what any can do: always the same while the map stays and it answers, so that what a session publishes
        keeps its order.
        """
        serving = self.cluster.serving()
        if self._any not in serving:
            self._any = min(serving, default=-1)
        return self._any

    async def run(self) -> None:
        """Have ``any_shard`` be one that answers, for ever."""
        while True:
            await self.cluster.updated.wait()
            serving = sorted(self.cluster.serving())
            if not serving or self._answers(self.any_shard()):
                continue
            answering = next(filter(self._answers, serving), None)
            if answering is not None:
                self._any = answering
                self.plane.fence_all()

    def _answers(self, shard: int) -> bool:
        primary = self.cluster.primary(shard)
        watch = self.cluster.watch_of(primary) if primary is not None else None
        return watch is not None and watch.alive and self.lanes.base[shard].attached

    def redirected(self, lane: Lane, frame: bytes) -> int | None:
        words = frame[1:-2].split(b" ")
        if words[0] not in (b"MOVED", b"ASK") or len(words) != 3:
            self.cluster.hint()
            return None
        if lane.owner.identity.own:
            self.lanes.disturbed(lane.owner.identity.own)  # what is sent again goes without CLIENT CACHING
        host, port = self.cluster.address_in(words[2], lane.owner.node_id)
        if words[0] == b"MOVED":
            self.cluster.moved(int(words[1]), host, port)
            return None
        shard = self.cluster.map.find(host, port)
        return shard.index if shard is not None else None


def unsure(frames: Sequence[bytes]) -> list[int]:
    """Which parts of a split may have been executed although they answered an error."""
    return [at for at, frame in enumerate(frames) if frame == UNKNOWN]
