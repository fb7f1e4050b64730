"""The router: one command is looked up, checked, and sent its way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import structlog
import trio

from proxy.codec import Limits, decode_request, encode_request, key_slot
from proxy.codec.reply import bulk_value, elements, is_error
from proxy.control.call import Call, Handler, Step
from proxy.control.connection import ConnectionCommands
from proxy.control.policy import DANGEROUS, LATER, Policy, not_supported
from proxy.control.sending import Sender, unsure
from proxy.control.transactions import TransactionCommands
from proxy.control.waiting import WaitCommands
from proxy.dataplane import BARRIER, READONLY, WRITE, Client, Mode, Request
from proxy.routing import (
    Command,
    CommandTable,
    Split,
    check_arity,
    extract,
    first_slot,
    lookup_error,
    slots_of,
    split,
    splitter,
)
from proxy.routing.guard import CROSSSLOT, MOST_WORDS, TOO_LARGE, UNCHECKED, guarded
from proxy.sessions.connection import BEFORE_AUTH, NOAUTH
from proxy.sessions.session import Replies, Session
from proxy.topology.lanes import Identity
from shard.client import ConnectionLost, ReplyError

BARRIERS = frozenset(
    {
        *(b"auth", b"hello", b"reset", b"quit", b"select"),
        *(b"multi", b"exec", b"discard", b"watch", b"unwatch"),
        *(b"client", b"wait", b"waitaof", b"scan", b"randomkey", b"script", b"function"),
    }
)
"""Commands that change how the session's next one travels, or take several steps of their own."""

REPEATED = frozenset({b"wait", b"waitaof"})
"""Commands that applications send in the same words again and again, each behind its writes."""
MOST_REPEATED = 1024  # of them, looked up and checked once

REFRESH = 5.0  # seconds at least between two readings of COMMAND because of an unknown name


class Router:
    """See the module."""

    def __init__(
        self,
        sender: Sender,
        policy: Policy,
        connection: ConnectionCommands,
        waits: WaitCommands,
        families: Iterable[Mapping[bytes, Handler]],
        limits: Limits,
        patience: float,
    ) -> None:
        self.sender = sender
        self.plane = sender.plane
        self.cluster = sender.cluster
        self.policy = policy
        self.connection = connection
        self.table = CommandTable(())
        self._repeated: dict[bytes, tuple[Sequence[bytes], Command]] = {}
        self.calls = 0
        self.refused = 0
        self.log = structlog.get_logger("control")
        self._limits = limits
        self._nursery: trio.Nursery | None = None
        self._refresh = trio.Event()
        self._one_by_one = False
        self._handlers: dict[bytes, Handler] = dict(waits.handlers)
        for family in families:
            self._handlers |= family
        self.transactions = TransactionCommands(sender, connection, waits, frozenset(self._handlers), patience)
        self._handlers |= self.transactions.handlers

    def learn(self, table: CommandTable) -> None:
        """Route by this command table from now on."""
        if table.digest == self.table.digest:
            return
        self.table = table
        self._repeated = {}
        self._prepare()
        self.log.info("command table", commands=len(table))

    def _prepare(self) -> None:
        """Have the data plane go by the table."""
        table = self.table
        barriers = {command.name.partition(b"|")[0] for command in table if self._takes_steps(command)} | BARRIERS
        overrides = {name.partition(b"|")[0] for name in (*self._handlers, *DANGEROUS, *LATER)}
        if self._one_by_one:
            # Barriers all: nothing of a client is sent behind a command that may have to be sent again.
            barriers |= {command.name.partition(b"|")[0] for command in table if command.has_many_keys}
        parse = table.parse_table(barriers, overrides, self._limits)
        flags = bytearray(max(command.id for command in table) + 1)
        for command in table:
            flags[command.id] = (WRITE if command.counts_as_write else 0) | (READONLY if command.is_readonly else 0)
            if command.id in parse.barriers:
                flags[command.id] |= BARRIER
        ways = {command.id: splitter(command, unsure) for command in table if command.id not in parse.barriers}
        splitters = {command_id: way for command_id, way in ways.items() if way is not None}
        self.plane.set_commands(parse, bytes(flags), splitters)
        self.connection.unauthenticated = parse.with_limits(self._limits._replace(unauthenticated=True))

    def one_by_one(self, on: bool) -> None:
        """Whether a client's next command waits for the reply to one of several keys."""
        self._one_by_one = on
        self._prepare()

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

    def refresh(self) -> None:
        """The engine may know other commands than it did: read COMMAND again soon."""
        self._refresh.set()

    async def read_commands(self) -> None:
        """Read COMMAND from a node that answers; keeps the present table when none does."""
        for watch in list(self.cluster.nodes.values()):
            if not watch.alive:
                continue
            try:
                node = await self.cluster.connect(watch.host, watch.port)
                async with node:
                    self.learn(CommandTable.from_reply(await node.call("COMMAND"), self.table))
                    return
            except (ConnectionLost, ReplyError, ValueError) as problem:
                self.log.warning("COMMAND could not be read", node=f"{watch.host}:{watch.port}", reason=str(problem))

    def keys(self, raw: bytes) -> list[bytes]:
        """The keys of a request, as far as its key specs tell."""
        args = decode_request(raw)
        command = self.table.lookup(args)
        if command is None:
            return []
        return [args[index] for index in extract(command, args).indices]

    def opened(self, client: Client) -> None:
        identity = Identity("default", 0, 2)
        session = Session(client, identity, self.connection.doorkeeper.open)
        client.session = session
        self.connection.sessions[client.id] = session
        self.sender.adopt(session, identity)
        if not session.authenticated:
            client.table = self.connection.unauthenticated
            client.mode = Mode.CONTROL

    def closed(self, client: Client) -> None:
        session: Session = client.session
        del self.connection.sessions[client.id]
        if session.working is not None:
            session.working.cancel()
        if session.transaction is not None:
            session.transaction.end(clean=False)

    def half_closed(self, client: Client) -> None:
        session: Session = client.session
        if session.blocked is not None:
            self.plane.kill(client)  # as the engine does with a client that blocks

    def command(self, request: Request) -> None:
        """Deal with one command, in its client's order (data plane contract)."""
        assert request.client is not None
        session: Session = request.client.session
        self.calls += 1
        if session.replies is not Replies.ON:
            session.began(request)
        try:
            step = self._dispatch(session, request)
        except Exception:
            self.log.exception("command failed", command_id=request.command_id)
            self.sender.answer(request, b"-ERR internal error of the proxy, see its log\r\n")
            return
        if step is not None:
            assert self._nursery is not None
            self._nursery.start_soon(self._carry_out, session, request, step)

    async def _carry_out(self, session: Session, request: Request, step: Step) -> None:
        if session.client.closed:
            step.close()
            return
        with trio.CancelScope() as scope:
            session.working = scope
            try:
                await step
            except Exception:
                self.log.exception("command failed", command_id=request.command_id)
                self.sender.answer(request, b"-ERR internal error of the proxy, see its log\r\n")
            finally:
                session.working = None

    def _dispatch(self, session: Session, request: Request) -> Step | None:
        known = self._repeated.get(request.raw)
        if known is not None and session.authenticated and not session.in_multi:
            session.last_command = known[1].name
            request.command_id = known[1].id
            return self._handlers[known[1].name](Call(session, request, *known))
        args = decode_request(request.raw)
        if not session.authenticated and args[0].lower() not in BEFORE_AUTH:
            self.sender.answer(request, NOAUTH)
            return None
        command = self.table.lookup(args)
        if command is None:
            self.refresh()
            self._refuse(session, request, lookup_error(self.table, args))
            return None
        session.last_command = command.name
        # The parser knows containers only: whether FUNCTION LOAD or XGROUP CREATE writes, its subcommand tells.
        request.command_id = command.id
        request.write = command.counts_as_write
        short = check_arity(command, args)
        if short is not None:
            if command.name == b"exec" and session.transaction is not None:
                session.transaction.abort(request, short)  # even refused, EXEC ends the transaction and what it watches
            else:
                self._refuse(session, request, short)
            return None
        refusal = self.policy.refusal(command, args)
        if refusal is not None:
            self.refused += 1
            self._refuse(session, request, refusal)
            return None
        call = Call(session, request, args, command)
        if command.name in UNCHECKED and not self._guard(call):
            return None
        if session.in_multi:
            return self.transactions.within(call)
        handler = self._handlers.get(command.name)
        if command.name in REPEATED and len(self._repeated) < MOST_REPEATED:
            self._repeated[request.raw] = args, command
        return handler(call) if handler is not None else self._by_policy(call)

    def _refuse(self, session: Session, request: Request, frame: bytes) -> None:
        if session.in_multi and session.transaction is not None:
            session.transaction.refuse(request, frame)
        else:
            self.sender.answer(request, frame)

    def _guard(self, call: Call) -> bool:
        """Give a call whose slots the engine does not check a form that it does; False: its keys may not be split."""
        if not call.session.in_multi and split(call.command, call.args) is not None:
            return True
        if len(slots_of(extract(call.command, call.args), call.args)) > 1:
            self._refuse(call.session, call.request, CROSSSLOT)
            return False
        if len(call.args) > MOST_WORDS:
            self._refuse(call.session, call.request, TOO_LARGE)
            return False
        call.request.raw = guarded(call.command, call.args)
        return True

    def _by_policy(self, call: Call) -> Step | None:
        policy = call.command.request_policy
        if policy == b"multi_shard":
            taken = split(call.command, call.args)
            if isinstance(taken, Split):
                self.sender.split(call.session, call.request, taken)
                return None
            if taken is not None:
                self.sender.answer(call.request, taken)
                return None
        elif policy == b"all_shards":
            self.sender.to_all_shards(call)
            return None
        elif policy == b"all_nodes":
            return self.sender.to_all_nodes(call)
        elif policy is not None and not call.command.is_keyed:
            self.sender.answer(call.request, not_supported(call.command))
            return None
        return self._to_one(call)

    def _to_one(self, call: Call) -> Step | None:
        """The shard of the first key; any one where there is no key."""
        if call.command.is_keyed:
            slot = first_slot(call.command, call.args)
            if slot is None and self._takes_steps(call.command):
                return self._ask_for_keys(call.session, call.request, call.args)
            if slot is not None:
                self.sender.send(call.session, call.request, slot)
                return None
        self.sender.send_to(call.session, call.request, self.sender.any_shard())
        return None

    async def _ask_for_keys(self, session: Session, request: Request, args: Sequence[bytes]) -> None:
        """The key specs cannot tell where the keys are: the engine can."""
        lane = self.sender.lane(session, self.sender.any_shard())
        frame = await self.sender.ask(session, lane, encode_request([b"COMMAND", b"GETKEYS", *args]))
        keys = [] if is_error(frame) else [bulk_value(item) or b"" for item in elements(frame)]
        if keys:
            self.sender.send(session, request, key_slot(keys[0]))
        else:
            self.sender.send_to(session, request, self.sender.any_shard())
