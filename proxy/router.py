"""The router: what happens to a command that is not plain.

It applies what ``routing`` knows (policies, splits, merges) to the lanes of a session, hands the commands
that belong to the connection to ``sessions``, and WAIT and WAITAOF to ``acks``.  One row in a table per
command with a way of its own; everything else goes by the engine's hints.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

from random import Random

import structlog
import trio

from proxy.acks.arguments import Refused, parse_wait, parse_waitaof
from proxy.acks.wait import GONE, Acks, Unconfirmed
from proxy.codec import decode_request, encode_request, key_slot
from proxy.codec.reply import OK, array, bulk, bulk_value, decode, elements, error, integer, integer_value, is_error, verbatim
from proxy.dataplane import BARRIER, READONLY, WRITE, Client, DataPlane, Lane, Mode, Request
from proxy.observe.metrics import WaitCommand, WaitResult
from proxy.routing import (
    DONE,
    BadCursor,
    Command,
    CommandTable,
    Cursor,
    NotServed,
    Part,
    Scan,
    Shard,
    ShardFigures,
    Split,
    aggregate,
    agreed_ranges,
    check_arity,
    choose_shard,
    extract,
    first_slot,
    lookup_error,
    merge_info,
    shard_sections,
    slots_of,
    split,
)
from proxy.routing.slot_map import Node, Ranges
from proxy.sessions import clients, connection
from proxy.sessions.session import Session
from proxy.sessions.transaction import NOT_HERE, Places, Transaction
from proxy.topology.cluster import Cluster
from proxy.topology.lanes import Busy, Identity, Lanes, Owner
from proxy.topology.redirects import UNKNOWN
from shard.client import ConnectionLost, ReplyError

BARRIERS = frozenset(
    {
        *(b"auth", b"hello", b"reset", b"quit", b"select"),
        *(b"multi", b"exec", b"discard", b"watch", b"unwatch"),
        *(b"wait", b"waitaof", b"scan", b"randomkey"),
    }
)
"""Commands that change how the session's next one travels, or take several steps of their own."""

DANGEROUS = frozenset(
    {
        *(b"replicaof", b"slaveof", b"shutdown", b"debug", b"sync", b"psync", b"replconf", b"failover", b"migrate"),
        *(b"module", b"save", b"bgsave", b"bgrewriteaof", b"restore-asking", b"pfdebug", b"pfselftest"),
        *(b"cluster|addslots", b"cluster|addslotsrange", b"cluster|bumpepoch", b"cluster|delslots"),
        *(b"cluster|delslotsrange", b"cluster|failover", b"cluster|flushslots", b"cluster|flushslot", b"cluster|forget"),
        *(b"cluster|meet", b"cluster|replicate", b"cluster|reset", b"cluster|saveconfig", b"cluster|set-config-epoch"),
        *(b"cluster|setslot", b"cluster|migrateslots", b"cluster|cancelslotmigrations", b"cluster|syncslots"),
    }
)
"""They would break the cluster under the proxy's feet; ``commands.allow`` lets them through."""

PROTECTED_SETTINGS = (
    *(b"bind", b"port", b"tls-port", b"unixsocket", b"protected-mode", b"requirepass", b"masterauth", b"primaryauth"),
    *(b"masteruser", b"primaryuser", b"replicaof", b"slaveof", b"dir", b"dbfilename", b"aclfile", b"appenddirname"),
    *(b"appendfilename", b"cluster-config-file", b"cluster-enabled", b"cluster-port", b"maxclients"),
    *(b"cluster-announce-", b"replica-announce-", b"slave-announce-", b"rename-command"),
)
"""Settings by which CONFIG SET would cut the nodes off from the proxy or from one another."""

LATER = frozenset(
    {
        *(b"subscribe", b"unsubscribe", b"psubscribe", b"punsubscribe", b"ssubscribe", b"sunsubscribe", b"pubsub"),
        *(b"monitor", b"clusterscan"),
        *(b"acl|setuser", b"acl|deluser", b"acl|list", b"acl|users", b"acl|getuser", b"acl|load", b"acl|save"),
        *(b"acl|log", b"acl|dryrun"),
    }
)
"""What has no right answer yet gets an error that says so."""

NO_CLUSTER = b"-ERR This instance has cluster support disabled\r\n"
CLUSTER_ANSWERED = frozenset({b"cluster|keyslot", b"cluster|help", b"cluster|slot-stats"})
OF_A_CLUSTER_CLIENT = frozenset({b"readonly", b"readwrite", b"asking"})
IN_MULTI_AS_IS = frozenset({b"ping", b"echo"})
"""Commands with a way of their own whose answer from any shard is the same."""

NOT_SERVED = b"-CLUSTERDOWN no shard serves any slot: send the command again\r\n"
SCAN_RETRY = 0.02  # seconds before a SCAN whose slot is not served is tried again
REFRESH = 5.0  # seconds at least between two readings of COMMAND because of an unknown name

Step = Awaitable[None]
Handler = Callable[[Session, Request, Sequence[bytes], Command], "Step | None"]


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


class Router(Places):
    """See the module."""

    def __init__(
        self,
        plane: DataPlane,
        cluster: Cluster,
        lanes: Lanes,
        acks: Acks,
        *,
        doorkeeper: connection.Doorkeeper,
        allow: Iterable[str],
        patience: float,
        large_request: int,
        own_info: Callable[[], dict[str, dict[str, object]]],
        observe_wait: Callable[[WaitCommand, WaitResult, float], None],
    ) -> None:
        self.plane = plane
        self.cluster = cluster
        self.lanes = lanes
        self.acks = acks
        self.doorkeeper = doorkeeper
        self.patience = patience
        self.table = CommandTable(())
        self.sessions: dict[int, Session] = {}
        self.counts = {"splits": 0, "fanouts": 0, "refused": 0, "control": 0}
        self.log = structlog.get_logger("router")
        self._allow = frozenset(name.lower().replace(" ", "|").encode() for name in allow)
        self._own_info = own_info
        self._observe_wait = observe_wait
        self._limits = plane.table.limits._replace(large_request=large_request)
        self._databases: set[int] = {0}
        self._nursery: trio.Nursery | None = None
        self._refresh = trio.Event()
        self._scan_cache: tuple[bytes, Ranges] = (b"", ())
        self._random = Random()
        self._handlers: dict[bytes, Handler] = {
            b"auth": self._auth,
            b"hello": self._hello,
            b"reset": self._reset,
            b"quit": self._quit,
            b"select": self._select,
            b"ping": self._ping,
            b"echo": self._echo,
            b"role": self._role,
            b"multi": self._multi,
            b"exec": self._exec,
            b"discard": self._discard,
            b"watch": self._watch,
            b"unwatch": self._unwatch,
            b"wait": self._wait,
            b"waitaof": self._wait,
            b"scan": self._scan,
            b"randomkey": self._randomkey,
            b"info": self._info,
            b"acl|whoami": self._whoami,
            b"config|set": self._config_set,
            **{b"client|" + name: self._client for name in clients.HANDLED},
        }

    # -- the command table ---------------------------------------------------------------------------
    def learn(self, table: CommandTable) -> None:
        """Route by this command table from now on."""
        if table.digest == self.table.digest:
            return
        self.table = table
        barriers = {command.name.partition(b"|")[0] for command in table if self._takes_steps(command)} | BARRIERS
        overrides = {name.partition(b"|")[0] for name in (*self._handlers, *DANGEROUS, *LATER)}
        parse = table.parse_table(barriers, overrides, self._limits)
        flags = bytearray(len(table) + 1)
        for command in table:
            flags[command.id] = (WRITE if command.counts_as_write else 0) | (READONLY if command.is_readonly else 0)
            if command.id in parse.barriers:
                flags[command.id] |= BARRIER
        self.plane.set_commands(parse, bytes(flags))
        self._unauthenticated = parse.with_limits(self._limits._replace(unauthenticated=True))
        self.log.info("command table", commands=len(table))

    @staticmethod
    def _takes_steps(command: Command) -> bool:
        """Whether more is to be done for it than putting requests on lanes in one go."""
        if command.request_policy == b"all_nodes":
            return True
        return command.is_keyed and not command.fixed_key and any(spec.incomplete for spec in command.key_specs[:1])

    async def run(self) -> None:
        """Carry out what takes several steps; read COMMAND again when the engine may have changed."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                await self._refresh.wait()
                await self.read_commands()
                await trio.sleep(REFRESH)
                self._refresh = trio.Event()

    async def read_commands(self) -> None:
        """Read COMMAND from a node that answers; keeps the present table when none does."""
        for watch in list(self.cluster.nodes.values()):
            if not watch.alive:
                continue
            try:
                node = await self.cluster.connect(watch.host, watch.port)
                async with node:
                    self.learn(CommandTable.from_reply(await node.call("COMMAND")))
                    return
            except (ConnectionLost, ReplyError, ValueError) as problem:
                self.log.warning("COMMAND could not be read", node=f"{watch.host}:{watch.port}", reason=str(problem))

    # -- clients come and go ---------------------------------------------------------------------------
    def opened(self, client: Client) -> None:
        session = Session(client, Identity("default", 0, 2), self.doorkeeper.open)
        client.session = session
        self.sessions[client.id] = session
        self.plane.set_lanes(client, self.lanes.of(session.identity))
        if not session.authenticated:
            client.table = self._unauthenticated
            client.mode = Mode.CONTROL

    def closed(self, client: Client) -> None:
        session: Session = client.session
        del self.sessions[client.id]
        if session.working is not None:
            session.working.cancel()
        if session.transaction is not None:
            session.transaction.end(clean=False)

    def half_closed(self, client: Client) -> None:
        session: Session = client.session
        if session.waiting:
            self.plane.kill(client)  # as the engine does with a client that blocks

    # -- one command --------------------------------------------------------------------------------------
    def command(self, request: Request) -> None:
        """Deal with one command, in its client's order (data plane contract)."""
        assert request.client is not None
        session: Session = request.client.session
        self.counts["control"] += 1
        try:
            step = self._dispatch(session, request)
        except Exception:
            self.log.exception("command failed", command_id=request.command_id)
            self._answer(request, b"-ERR internal error of the proxy, see its log\r\n")
            return
        if step is not None:
            assert self._nursery is not None
            self._nursery.start_soon(self._carry_out, session, request, step)

    async def _carry_out(self, session: Session, request: Request, step: Step) -> None:
        with trio.CancelScope() as scope:
            session.working = scope
            try:
                await step
            except Exception:
                self.log.exception("command failed", command_id=request.command_id)
                self._answer(request, b"-ERR internal error of the proxy, see its log\r\n")
            finally:
                session.working = None

    def _answer(self, request: Request, frame: bytes) -> None:
        """Answer, and let the client go on if it stood behind this command."""
        client = request.client
        assert client is not None
        with self.plane.turn():
            self.plane.answer(request, frame)
            if request.barrier:
                self.plane.resume(client, client.session.mode)

    def _dispatch(self, session: Session, request: Request) -> Step | None:
        args = decode_request(request.raw)
        if not session.authenticated and args[0].lower() not in connection.BEFORE_AUTH:
            self._answer(request, connection.NOAUTH)
            return None
        command = self.table.lookup(args)
        if command is None:
            self._refresh.set()
            self._refuse(session, request, lookup_error(self.table, args))
            return None
        session.last_command = command.name
        short = check_arity(command, args)
        if short is not None:
            self._refuse(session, request, short)
            return None
        refusal = self._refusal(command, args)
        if refusal is not None:
            self.counts["refused"] += 1
            self._refuse(session, request, refusal)
            return None
        if session.in_multi:
            return self._within_multi(session, request, args, command)
        handler = self._handlers.get(command.name)
        if handler is not None:
            return handler(session, request, args, command)
        return self._by_policy(session, request, args, command)

    def _refuse(self, session: Session, request: Request, frame: bytes) -> None:
        if session.in_multi and session.transaction is not None:
            session.transaction.refuse(request, frame)
        else:
            self._answer(request, frame)

    def _refusal(self, command: Command, args: Sequence[bytes]) -> bytes | None:
        """The error for what may not or cannot pass; None for everything else."""
        container = command.name.partition(b"|")[0]
        if command.name in self._allow or container in self._allow:
            return None
        if command.name in DANGEROUS or container in DANGEROUS:
            return error(
                b"ERR '%s' is refused by the proxy because it could break the cluster behind it; "
                b"an administrator may allow it (commands.allow)" % command.name.replace(b"|", b" ")
            )
        if command.name in LATER or (container == b"client" and command.name[7:] not in (*clients.HANDLED, b"help")):
            return _not_supported(command)
        if container == b"cluster" and command.name not in CLUSTER_ANSWERED or command.name in OF_A_CLUSTER_CLIENT:
            return NO_CLUSTER
        if command.is_blocking and command.name not in (b"wait", b"waitaof") and _blocks(command, args):
            return _not_supported(command)
        return None

    # -- by the engine's hints ---------------------------------------------------------------------------
    def _by_policy(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> Step | None:
        policy = command.request_policy
        if policy == b"multi_shard":
            taken = split(command, args)
            if isinstance(taken, Split):
                self._split(session, request, taken)
                return None
            if taken is not None:
                self._answer(request, taken)
                return None
        elif policy == b"all_shards":
            self._to_all_shards(session, request, args, command)
            return None
        elif policy == b"all_nodes":
            return self._to_all_nodes(session, request, args, command)
        elif policy is not None and not command.is_keyed:
            self._answer(request, _not_supported(command))
            return None
        return self._to_one(session, request, args, command)

    def _to_one(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> Step | None:
        """The shard of the first key; any one where there is no key."""
        if command.is_keyed:
            slot = first_slot(command, args)
            if slot is None and self._takes_steps(command):
                return self._ask_for_keys(session, request, args)
            if slot is not None:
                self._send(session, request, slot)
                return None
        self._send_to(session, request, self.any_shard())
        return None

    async def _ask_for_keys(self, session: Session, request: Request, args: Sequence[bytes]) -> None:
        """The key specs cannot tell where the keys are: the engine can."""
        lane = self._lane(session, self.any_shard())
        frame = await self._ask(session, lane, encode_request([b"COMMAND", b"GETKEYS", *args]))
        keys = [] if is_error(frame) else [bulk_value(item) or b"" for item in elements(frame)]
        if keys:
            self._send(session, request, key_slot(keys[0]))
        else:
            self._send_to(session, request, self.any_shard())

    def _send(self, session: Session, request: Request, slot: int) -> None:
        """Put a request on the lane of its slot; its reply goes to the client as it is."""
        request.slot = slot
        self._send_to(session, request, self.shard_of(slot))

    def _send_to(self, session: Session, request: Request, shard: int) -> None:
        if not request.barrier:
            self.plane.resubmit(request, self._lane(session, shard))
        elif len(request.raw) > self._limits.large_request and shard >= 0:
            self._send_large(session, request, shard)
        else:
            self._submit(session, request, self._lane(session, shard))

    def _send_large(self, session: Session, request: Request, shard: int) -> None:
        """A large request has a lane to itself, so that it holds up nobody else's."""
        try:
            lane = self.lanes.lease(session.identity, shard)
        except Busy:
            self._submit(session, request, self._lane(session, shard))
            return

        def replied(frame: bytes) -> None:
            elsewhere = frame.startswith(NOT_HERE)
            if elsewhere:
                self.redirected(lane, frame)
            self.lanes.release(lane, clean=not lane.closed)
            if elsewhere:
                self._submit(session, request, self._lane(session, self.shard_of(request.slot)))
            else:
                self._answer(request, frame)

        self.plane.submit(
            lane, request.raw, replied, client=session.client, command_id=request.command_id, write=request.write, pinned=True
        )

    def _submit(self, session: Session, request: Request, lane: Lane) -> None:
        """A barrier's request on a shared lane: the client goes on when the reply is in."""
        self.plane.submit(
            lane,
            request.raw,
            lambda frame: self._answer(request, frame),
            client=session.client,
            slot=request.slot,
            command_id=request.command_id,
            write=request.write,
        )

    def _split(self, session: Session, request: Request, taken: Split) -> None:
        """A multi-key command: a part for each slot, one send for each lane."""
        self.counts["splits"] += 1
        join = Join(len(taken.parts), lambda frames: self._answer(request, taken.join(frames, _unsure(frames))))
        with self.plane.turn():
            for at, part in enumerate(taken.parts):
                self._send_part(session, request, part, join.part(at))

    def _send_part(self, session: Session, request: Request, part: Part, replied: Callable[[bytes], None]) -> None:
        self.plane.submit(
            self._lane(session, self.shard_of(part.slot)),
            part.raw,
            replied,
            client=session.client,
            slot=part.slot,
            command_id=request.command_id,
            write=request.write,
        )

    def _to_all_shards(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> None:
        def combine(frames: list[bytes]) -> None:
            self._answer(request, aggregate(command, args, frames, session.protocol))

        self._fan_out(session, request, request.raw, combine)

    def _fan_out(self, session: Session, request: Request, raw: bytes, combine: Callable[[list[bytes]], None]) -> None:
        """Send to every shard that serves slots, on the session's own lanes, behind what it sent before."""
        shards = self.cluster.serving()
        if not shards:
            self._answer(request, NOT_SERVED)
            return
        self.counts["fanouts"] += 1
        join = Join(len(shards), combine)
        with self.plane.turn():
            for at, shard in enumerate(shards):
                self.plane.submit(
                    self._lane(session, shard),
                    raw,
                    join.part(at),
                    client=session.client,
                    command_id=request.command_id,
                    write=request.write,
                )

    async def _to_all_nodes(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> None:
        """Primaries and replicas; a node that the cluster holds for failed is none of it at the moment."""
        self.counts["fanouts"] += 1
        shards = [shard for shard in self.cluster.map.shards if shard.ranges]
        replicas = [node for shard in shards for node in shard.replicas if node.health != "fail"]
        frames: dict[int, bytes] = {}

        async def primary(at: int, shard: int) -> None:
            frames[at] = await self._ask(session, self._lane(session, shard), request.raw, request)

        async def replica(at: int, node: Node) -> None:
            try:
                lane = await self.lanes.lease_node(session.identity, node)
            except (ConnectionLost, ReplyError) as problem:
                frames[at] = error(f"ERR node {node.host}:{node.port} could not be reached ({problem}); try again")
                return
            frames[at] = await self._ask(session, lane, request.raw, pinned=True)
            self.lanes.release(lane, clean=False)

        async with trio.open_nursery() as nursery:
            for at, shard in enumerate(shards):
                nursery.start_soon(primary, at, shard.index)
            for at, node in enumerate(replicas, len(shards)):
                nursery.start_soon(replica, at, node)
        ordered = [frames[at] for at in sorted(frames)]
        self._answer(request, aggregate(command, args, ordered, session.protocol) if ordered else NOT_SERVED)

    async def _ask(
        self, session: Session, lane: Lane, raw: bytes, request: Request | None = None, pinned: bool = False
    ) -> bytes:
        """The raw reply to one request put on a lane."""
        done = trio.Event()
        frames: list[bytes] = []

        def replied(frame: bytes) -> None:
            frames.append(frame)
            done.set()

        self.plane.submit(
            lane,
            raw,
            replied,
            client=session.client,
            command_id=request.command_id if request is not None else 0,
            write=request.write if request is not None else False,
            pinned=pinned,
        )
        await done.wait()
        return frames[0]

    # -- where slots are served (for transactions, too) -----------------------------------------------------
    def _lane(self, session: Session, shard: int) -> Lane:
        return session.client.lanes[shard]

    def shard_of(self, slot: int) -> int:
        return self.plane.shard_of_slot[slot]

    def any_shard(self) -> int:
        """Always the same while the map stays: what a session publishes keeps its order."""
        return min(self.cluster.serving(), default=-1)

    def redirected(self, lane: Lane, frame: bytes) -> int | None:
        words = frame[1:-2].split(b" ")
        if words[0] not in (b"MOVED", b"ASK") or len(words) != 3:
            self.cluster.hint()
            return None
        host, port = self.cluster.address_in(words[2], lane.owner.node_id)
        if words[0] == b"MOVED":
            self.cluster.moved(int(words[1]), host, port)
            return None
        shard = self.cluster.map.find(host, port)
        return shard.index if shard is not None else None

    # -- the connection itself ----------------------------------------------------------------------------------
    def _auth(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> None:
        frame = connection.auth(session, self.doorkeeper, args)
        if session.authenticated:
            session.client.table = None
        self._answer(request, frame)

    def _hello(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> None:
        asked = connection.parse_hello(args)
        refused = asked if isinstance(asked, bytes) else connection.hello(session, self.doorkeeper, asked)
        if session.authenticated:
            session.client.table = None
        if refused is not None:
            self._answer(request, refused)
            return
        if isinstance(asked, connection.Hello) and asked.protocol is not None:
            self._become(session, session.identity._replace(protocol=asked.protocol))
        self._answer(request, connection.hello_reply(session, self.engine()))

    def _become(self, session: Session, identity: Identity) -> None:
        """Use the lanes of another identity.  Everything sent before is answered: a barrier brought us here."""
        session.identity = identity
        self.plane.set_lanes(session.client, self.lanes.of(identity))

    def engine(self) -> connection.Engine:
        """The engine behind, by the oldest of its nodes."""
        nodes = [watch for watch in self.cluster.nodes.values() if watch.version]
        if not nodes:
            return connection.Engine(b"redis", b"0.0.0")
        oldest = min(nodes, key=lambda watch: _version(watch.version))
        return connection.Engine(oldest.engine.encode(), oldest.version.encode())

    def _reset(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> None:
        """RESET: as if just connected (networking.c: resetCommand)."""
        if session.transaction is not None:
            session.transaction.end(clean=False)
        session.name = b""
        session.authenticated = self.doorkeeper.open
        session.client.table = None if session.authenticated else self._unauthenticated
        self._become(session, Identity("default", 0, 2))
        self._answer(request, b"+RESET\r\n")

    def _quit(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> None:
        with self.plane.turn():
            self.plane.answer(request, OK)
            self.plane.finish(session.client)

    async def _select(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> None:
        """SELECT: what a shard says to it on a connection of its own decides."""
        if not args[1].isdigit() or str(int(args[1])).encode() != args[1] or int(args[1]) not in self._databases:
            try:
                node = self.cluster.primary(self.any_shard())
                if node is None:
                    raise ConnectionLost("no shard has a primary")
                async with await self.cluster.connect(node.host, node.port) as probe:
                    await probe.call("SELECT", args[1])
            except ReplyError as refused:
                self._answer(request, error(str(refused)))
                return
            except ConnectionLost as problem:
                self._answer(request, error(f"CLUSTERDOWN SELECT could not be checked ({problem}); try again"))
                return
            self._databases.add(int(args[1]))
        self._become(session, session.identity._replace(database=int(args[1])))
        self._answer(request, OK)

    def _ping(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> None:
        if len(args) > 2:
            self._answer(request, b"-ERR wrong number of arguments for 'ping' command\r\n")
            return
        self._answer(request, connection.ping(session, args))

    def _echo(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> None:
        self._answer(request, bulk(args[1]))

    def _role(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> None:
        """To its clients the proxy is a primary without replicas of its own."""
        self._answer(request, array([bulk(b"master"), integer(0), array([])]))

    def _client(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> None:
        self._answer(request, clients.client(session, list(self.sessions.values()), args))

    def _whoami(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> None:
        self._answer(request, bulk(session.identity.user.encode()))

    def _config_set(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> Step | None:
        for name in args[2::2]:
            if name.lower().startswith(PROTECTED_SETTINGS) and b"config|set" not in self._allow:
                text = b"ERR CONFIG SET failed - setting '%s' is refused by the proxy: it would cut nodes off" % name[:64]
                self._answer(request, error(text))
                return None
        return self._to_all_nodes(session, request, args, command)

    # -- transactions ----------------------------------------------------------------------------------------------
    def _transaction(self, session: Session) -> Transaction:
        if session.transaction is None:
            session.transaction = Transaction(session, self.plane, self.lanes, self, self.patience)
        return session.transaction

    def _multi(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> None:
        self._transaction(session).begin(request)

    def _watch(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> None:
        self._transaction(session).watch(request, slots_of(extract(command, args), args))

    def _unwatch(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> None:
        if session.transaction is None:
            self._answer(request, OK)
        else:
            session.transaction.unwatch(request)

    def _exec(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> None:
        self._answer(request, b"-ERR EXEC without MULTI\r\n")

    def _discard(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> None:
        self._answer(request, b"-ERR DISCARD without MULTI\r\n")

    def _within_multi(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> Step | None:
        transaction = session.transaction
        assert transaction is not None
        if command.name == b"exec":
            step = transaction.execute(request)
            return step() if step is not None else None
        if command.name == b"discard":
            transaction.discard(request)
        elif command.name == b"quit":
            self._quit(session, request, args, command)
        elif command.name == b"reset":
            self._reset(session, request, args, command)
        elif b"no_multi" in command.flags:
            name = command.name.replace(b"|", b"|")
            transaction.refuse(request, error(b"ERR Command '%s' not allowed inside a transaction" % name))
        elif not self._may_queue(command):
            name = command.name.replace(b"|", b" ")
            transaction.refuse(request, error(b"ERR '%s' inside MULTI is not supported by the proxy yet" % name))
        else:
            transaction.queue(request, command, first_slot(command, args) if command.is_keyed else None)
        return None

    def _may_queue(self, command: Command) -> bool:
        """Whether one shard's answer is the whole answer."""
        if command.is_keyed:
            return command.request_policy in (None, b"multi_shard")
        if command.name in IN_MULTI_AS_IS or command.name == b"unwatch":
            return True
        return command.request_policy is None and command.name not in self._handlers

    # -- WAIT and WAITAOF --------------------------------------------------------------------------------------------
    def _wait(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> Step | None:
        try:
            asked = parse_wait(args) if command.name == b"wait" else parse_waitaof(args)
        except Refused as refused:
            self._answer(request, error(str(refused)))
            return None

        async def wait() -> None:
            started = trio.current_time()
            result: WaitResult = "gone"
            session.waiting = True
            try:
                frame = await self.acks.wait(session.client, session.memory, asked)
                result = _wait_result(frame, asked.local, asked.replicas)
                self._answer(request, frame)
            except Unconfirmed:
                result = "unblocked"
                with self.plane.turn():
                    self.plane.answer(request, GONE)
                    self.plane.finish(session.client)
            finally:
                session.waiting = False
                self._observe_wait("waitaof" if asked.fsync else "wait", result, trio.current_time() - started)

        return wait()

    # -- commands of several steps, or with a merge of their own -----------------------------------------------------
    async def _randomkey(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> None:
        """A shard drawn by its number of keys, so that every key is as likely as any other."""
        frame = b"$-1\r\n" if session.protocol == 2 else b"_\r\n"
        for _ in range(3):  # the key may be gone again when it is asked for
            shards = self.cluster.serving()
            sizes = await self._of_all(session, shards, encode_request([b"DBSIZE"]))
            failed = next((each for each in sizes if is_error(each)), None)
            if failed is not None:
                frame = failed
                break
            drawn = choose_shard([integer_value(each) for each in sizes], self._random)
            if drawn is None:
                break
            frame = await self._ask(session, self._lane(session, shards[drawn]), request.raw, request)
            if frame not in (b"$-1\r\n", b"_\r\n"):
                break
        self._answer(request, frame)

    async def _of_all(self, session: Session, shards: Sequence[int], raw: bytes) -> list[bytes]:
        frames: list[bytes] = [b""] * len(shards)

        async def one(at: int, shard: int) -> None:
            frames[at] = await self._ask(session, self._lane(session, shard), raw)

        async with trio.open_nursery() as nursery:
            for at, shard in enumerate(shards):
                nursery.start_soon(one, at, shard)
        return frames

    async def _scan(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> None:
        """One step of SCAN over shards.  The shard says before and behind it which slots it owns."""
        try:
            cursor = Cursor.decode(args[1])
        except BadCursor as bad:
            self._answer(request, bad.frame)
            return
        deadline = trio.current_time() + self.patience
        scan = Scan(positional=self._cursors_carry_slots(), life=self._life_of(session))
        while True:
            frame = await self._scan_step(session, scan, cursor, args)
            if frame is not None or trio.current_time() > deadline:
                break
            self.cluster.hint()
            await trio.sleep(SCAN_RETRY)
        self._answer(request, frame or NOT_SERVED)

    async def _scan_step(self, session: Session, scan: Scan, cursor: Cursor, args: Sequence[bytes]) -> bytes | None:
        """The reply to a SCAN with ``cursor``; None when the slot it stands at is not served now."""
        slot_map = self.cluster.map
        try:
            step = scan.next_step(slot_map, cursor)
        except NotServed:
            return None
        lane = self._lane(session, step.shard)
        if not lane.attached:
            return None
        slots = encode_request([b"CLUSTER", b"SLOTS"])
        raw = encode_request([args[0], b"%d" % step.engine_cursor, *args[2:]])
        before, frame, after = await self._together(session, lane, [slots, raw, slots])
        if lane.closed or any(is_error(each) for each in (before, after)):
            return None
        if is_error(frame):
            return None if frame.startswith(NOT_HERE) else frame
        owned = agreed_ranges(self._own_ranges(lane, before), self._own_ranges(lane, after))
        returned, keys = elements(frame)
        following = scan.after(self.cluster.map, step, int(bulk_value(returned) or 0), owned)
        text = following.encode()
        if following != DONE and text == b"0":
            text = Cursor(following.slot, following.mark, True, following.engine).encode()
        return array([bulk(text), keys])

    async def _together(self, session: Session, lane: Lane, raws: Sequence[bytes]) -> list[bytes]:
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

    def _own_ranges(self, lane: Lane, frame: bytes) -> Ranges:
        """The slot ranges of the lane's node in its CLUSTER SLOTS reply; the same bytes are read once."""
        owner: Owner = lane.owner
        key = owner.node_id.encode() + frame
        if self._scan_cache[0] != key:
            rows = decode(frame)
            ranges = tuple(sorted((row[0], row[1]) for row in rows if row[2][2] == owner.node_id.encode()))
            self._scan_cache = key, ranges
        return self._scan_cache[1]

    def _cursors_carry_slots(self) -> bool:
        """Valkey 8 and Redis 8 keep one table per slot and put the slot into the cursor (kvstore.c)."""
        return all(_version(watch.version) >= (8,) for watch in self.cluster.nodes.values() if watch.version)

    def _life_of(self, session: Session) -> Callable[[Shard], bytes]:
        def life(shard: Shard) -> bytes:
            incarnation = self._lane(session, shard.index).owner.incarnation
            return incarnation.run_id.encode() if incarnation is not None else b""

        return life

    def _info(self, session: Session, request: Request, args: Sequence[bytes], command: Command) -> None:
        names = args[1:]
        sections = shard_sections(names)

        def answer(texts: Sequence[bytes]) -> None:
            text = merge_info(names, texts, self._own_info(), self._shard_figures())
            self._answer(request, verbatim(text, session.protocol))

        def combine(frames: list[bytes]) -> None:
            failed = next((frame for frame in frames if is_error(frame)), None)
            if failed is not None:
                self._answer(request, failed)
            else:
                answer([bulk_value(frame) or b"" for frame in frames])

        if not sections:
            answer([])
            return
        self._fan_out(session, request, encode_request([b"INFO", *sections]), combine)

    def _shard_figures(self) -> list[ShardFigures]:
        figures = []
        for shard in self.cluster.map.shards:
            watch = self.cluster.watch_of(shard.primary) if shard.primary is not None else None
            address = f"{shard.primary.host}:{shard.primary.port}" if shard.primary is not None else ""
            figures.append(ShardFigures(shard.index, shard.id.decode(), address, shard.ranges, watch.keys if watch else 0))
        return figures


def _not_supported(command: Command) -> bytes:
    name = command.name.replace(b"|", b" ")
    return error(b"ERR '%s' is not supported by the proxy yet" % name)


def _blocks(command: Command, args: Sequence[bytes]) -> bool:
    """Whether this call may block: XREAD and XREADGROUP only with BLOCK in front of their keys."""
    if command.name not in (b"xread", b"xreadgroup"):
        return True
    words = [arg.lower() for arg in args[1:]]
    options = words[: words.index(b"streams")] if b"streams" in words else words
    start = 3 if command.name == b"xreadgroup" else 0  # behind GROUP, which a group may also be called
    return b"block" in options[start:]


def _unsure(frames: Sequence[bytes]) -> list[int]:
    """Which parts of a split may have been executed although they answered an error."""
    return [at for at, frame in enumerate(frames) if frame == UNKNOWN]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(".") if word.isdigit())


def _wait_result(frame: bytes, local: int, replicas: int) -> WaitResult:
    if is_error(frame):
        return "error"
    if frame[:1] == b":":
        return "reached" if integer_value(frame) >= replicas else "deadline"
    got_local, got = (integer_value(each) for each in elements(frame))
    return "reached" if got_local >= local and got >= replicas else "deadline"
