"""The router: one command is looked up, checked, and sent its way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import structlog
import trio

from proxy.codec import Limits, decode_request, encode_request, key_slot
from proxy.codec.reply import bulk_value, elements, error, is_error
from proxy.control.blocking import Block, BlockingCommands
from proxy.control.call import Call, Handler, Step
from proxy.control.connection import ConnectionCommands
from proxy.control.monitoring import MonitorCommands
from proxy.control.pausing import Pausing
from proxy.control.permissions import ALWAYS, Permissions
from proxy.control.policy import Policy, not_supported
from proxy.control.pubsub import refusal as of_subscriber
from proxy.control.scripts import BY_BODY, BY_SHA, ScriptCommands
from proxy.control.sending import Sender
from proxy.control.tracking import TrackingCommands
from proxy.control.transactions import TransactionCommands
from proxy.control.vocabulary import Vocabulary
from proxy.control.waiting import WaitCommands
from proxy.dataplane import Client, Mode, Request
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
)
from proxy.routing.guard import CROSSSLOT, MOST_WORDS, TOO_LARGE, UNCHECKED, guarded
from proxy.sessions.blocking import blocks
from proxy.sessions.connection import BEFORE_AUTH, NOAUTH
from proxy.sessions.session import Replies, Session
from proxy.topology.owners import Identity

HTTP = frozenset({b"post", b"host:"})
"""Names that no command has and every HTTP request of another's page brings: its connection is closed at once."""
HTTP_INITIALS = b"pPhH"
WARN_AGAIN = 60.0  # seconds before that is logged again
NAMES_IT = 3  # words of an administrator's command that tell which one it is, and what about
LONG_VALUE = 64  # bytes of a value above which the engine is not shown it when it is only asked for leave
REPEATED = frozenset({b"wait", b"waitaof"})
"""Commands that applications send in the same words again and again, each behind its writes."""
MOST_REPEATED = 1024  # of them, looked up and checked once
LONGEST_REPEATED = 128  # bytes; what is longer was not meant to be understood


class Router:
    """See the module."""

    def __init__(
        self,
        sender: Sender,
        policy: Policy,
        connection: ConnectionCommands,
        permissions: Permissions,
        waits: WaitCommands,
        blocking: BlockingCommands,
        scripts: ScriptCommands,
        tracking: TrackingCommands,
        monitors: MonitorCommands,
        pausing: Pausing,
        families: Iterable[Mapping[bytes, Handler]],
        limits: Limits,
        patience: float,
    ) -> None:
        self.sender = sender
        self.plane = sender.plane
        self.cluster = sender.cluster
        self.policy = policy
        self.connection = connection
        self.permissions = permissions
        self.blocking = blocking
        self.scripts = scripts
        self.tracking = tracking
        self.monitors = monitors
        self.pausing = pausing
        self._repeated: dict[bytes, tuple[Sequence[bytes], Command]] = {}
        self.calls = 0
        self.refused = 0
        self.log = structlog.get_logger("control")
        self._nursery: trio.Nursery | None = None
        self._warn_again = 0.0
        self._handlers: dict[bytes, Handler] = dict(waits.handlers)
        for family in (pausing.handlers, *families):
            self._handlers |= family
        self.transactions = TransactionCommands(sender, connection, waits, dict(self._handlers), patience)
        self._handlers |= self.transactions.handlers
        self.vocabulary = Vocabulary(
            sender,
            connection,
            permissions,
            self._handlers,
            limits,
            names_to_stop=pausing.names_to_stop,
            learned=self._learned,
        )

    @property
    def table(self) -> CommandTable:
        """By which is routed."""
        return self.vocabulary.table

    def _learned(self, table: CommandTable) -> None:
        self._repeated = {}
        self.scripts.learn(table)


    def users_changed(self) -> None:
        """The rules of some user are others than before."""
        self.permissions.forget()
        self.vocabulary.users_changed()
        for session in self.connection.sessions.values():
            if session.transaction is not None:
                session.transaction.doubted = True

    def passwords(self, identity: Identity) -> set[bytes]:
        """With which the sessions that travel as this identity logged in."""
        return {each.password for each in self.connection.sessions.values() if each.identity == identity}

    def part_from(self, identity: Identity, passwords: frozenset[bytes]) -> None:
        """Close the sessions that travel as this identity and logged in with one of these passwords, now."""
        for session in list(self.connection.sessions.values()):
            if session.identity == identity and session.password in passwords:
                self.plane.kill(session.client)

    def expel(self, user: str, identity: Identity | None = None) -> None:
        """A user is deleted, or no shard lets it in any more: its sessions are closed.

        ``identity``: only those that travel as this one.
        """
        for session in list(self.connection.sessions.values()):
            if session.identity.user != user or identity not in (None, session.identity):
                continue
            if session.blocked is not None:
                self.plane.kill(session.client)
            else:
                self.plane.finish(session.client)

    async def run(self) -> None:
        """Carry out what takes several steps."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self.vocabulary.run()

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
        self.connection.set_table(session)
        if not session.authenticated:
            client.mode = Mode.CONTROL

    def closed(self, client: Client) -> None:
        session: Session = client.session
        del self.connection.sessions[client.id]
        if session.working is not None:
            session.working.cancel()
        if session.transaction is not None:
            session.transaction.end(clean=False)
        if session.subscriptions is not None:
            session.subscriptions.leave()
        self.sender.part(session)
        self.tracking.gone(session)
        self.monitors.gone(session)
        self.pausing.gone(session)

    def half_closed(self, client: Client) -> None:
        session: Session = client.session
        if isinstance(session.blocked, Block):
            session.blocked.half_closed()
        elif (session.blocked is not None or session.parked) and not self.plane.winding_up:
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
            self._failed(request)
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
                self._failed(request)
            finally:
                if session.working is scope:  # once it has answered, the next command may be at work
                    session.working = None

    def _failed(self, request: Request) -> None:
        self.log.exception("command failed", command_id=request.command_id)
        self.sender.answer(request, b"-ERR internal error of the proxy, see its log\r\n")

    def _dispatch(self, session: Session, request: Request) -> Step | None:
        known = self._repeated.get(request.raw)
        if known is not None and self._is_plain(session, known[1], known[0]):
            session.last_command = known[1].name
            request.command_id = known[1].id
            return self._handlers[known[1].name](Call(session, request, *known))
        args = decode_request(request.raw)
        if args[0] and args[0][0] in HTTP_INITIALS and args[0].lower() in HTTP:
            self._abort_http(session)
            return None
        if not session.authenticated and args[0].lower() not in BEFORE_AUTH:
            self.sender.answer(request, NOAUTH)
            return None
        command = self.table.lookup(args)
        if command is None:
            self.vocabulary.refresh()
            self.refuse(session, request, lookup_error(self.table, args))
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
                self.refuse(session, request, short)
            return None
        refusal = of_subscriber(session, command, args) or self.monitors.refusal(session, command)
        if refusal is not None:
            self.refuse(session, request, refusal)
            return None
        refusal = self.policy.refusal(command, args)
        if refusal is not None:
            self.refused += 1
            self.refuse(session, request, refusal)
            return None
        call = Call(session, request, args, command)
        if not self.permissions.free(session) and (self.vocabulary.is_checked(command) or self._is_queued_here(call)):
            asked = self._to_be_checked(call)
            if asked is not None:
                return self._check(call, asked)
        return self._proceed(call)

    def _is_plain(self, session: Session, command: Command, args: Sequence[bytes]) -> bool:
        """Whether a command that was looked up and checked before goes straight to its handler."""
        if not session.authenticated or session.in_multi or session.tracking is not None:
            return False
        if self.monitors.watching or self.pausing.mode or not self.permissions.free(session):
            return False
        return of_subscriber(session, command, args) is None and self.monitors.refusal(session, command) is None

    @staticmethod
    def _is_queued_here(call: Call) -> bool:
        """Whether a transaction may answer QUEUED without a shard that looks at it: there is no key to find one by."""
        if not call.session.in_multi or call.command.name in ALWAYS:
            return False
        return not call.command.is_keyed or first_slot(call.command, call.args) is None

    @staticmethod
    def _to_be_checked(call: Call) -> Sequence[bytes] | None:
        """The words to ask about; None: one shard gets all of it, and looks at it itself."""
        command, args = call.command, call.args
        if call.session.in_multi and b"no_multi" in command.flags:
            return None  # refused for that, which the engine says first
        if b"admin" in command.flags and not command.is_keyed:
            # There may be passwords behind it, which a node would log.
            return [*args[:NAMES_IT], *[b""] * (len(args) - NAMES_IT)]
        if command.request_policy != b"multi_shard":
            return args
        taken = None if call.session.in_multi else split(command, args)
        if not isinstance(taken, Split) or len(taken.parts) < 2:
            return None
        keys = set(extract(command, args).indices)
        return [arg if at in keys or len(arg) <= LONG_VALUE else b"" for at, arg in enumerate(args)]

    async def _check(self, call: Call, asked: Sequence[bytes]) -> None:
        """What reaches no shard as it came is not begun before the engine says that this user may."""
        refusal = await self.permissions.refusal(call.session, asked, call.command)
        transaction = call.session.transaction
        if refusal is None and call.command.name == b"exec" and transaction is not None and transaction.yet_to_begin:
            refusal = await self.permissions.refusal(call.session, [b"MULTI"])
        if refusal is None:
            step = self._proceed(call)
            if step is not None:
                await step
        elif call.command.name == b"exec":
            # Even refused, EXEC ends the transaction, and says so (multi.c: execCommandAbort).
            text = error(b"EXECABORT Transaction discarded because of: " + refusal[1:-2])
            if transaction is not None:
                transaction.abort(call.request, text)
            else:
                self.sender.answer(call.request, text)
        else:
            self.refuse(call.session, call.request, refusal)

    def _proceed(self, call: Call) -> Step | None:
        if self.pausing.mode and self.pausing.stops(call):
            return self.pausing.hold(call)
        return self.pass_on(call)

    def again(self, call: Call) -> None:
        """A call that was held at the gate has its turn once more."""
        try:
            step = self._proceed(call)
        except Exception:
            self._failed(call.request)
            return
        if step is not None:
            assert self._nursery is not None
            self._nursery.start_soon(self._carry_out, call.session, call.request, step)

    def pass_on(self, call: Call) -> Step | None:
        """Do a call that nothing holds."""
        if self.monitors.watching:
            self.monitors.seen(call)
        if call.session.tracking is None:
            return self._go(call)
        self.tracking.begins(call.session)
        step = self._go(call)
        self.tracking.begun(call.session, done=step is None)
        return step

    def _go(self, call: Call) -> Step | None:
        session, args, command = call.session, call.args, call.command
        if command.name in UNCHECKED and not self._guard(call):
            return None
        if session.in_multi:
            if command.name in BY_SHA:
                self.scripts.put_ahead_of_exec(call)
            return self.transactions.within(call)
        handler = self._handlers.get(command.name)
        short = command.name in REPEATED and len(call.request.raw) <= LONGEST_REPEATED
        if short and len(self._repeated) < MOST_REPEATED:
            self._repeated[call.request.raw] = args, command
        if handler is not None:
            return handler(call)
        if blocks(command, args):
            self.blocking.block(call)
            return None
        return self._by_policy(call)

    def _abort_http(self, session: Session) -> None:
        """What a browser was made to send runs no command of the rest (server.c: securityWarningCommand)."""
        address, _ = session.client.addresses()
        self.plane.kill(session.client)
        if trio.current_time() >= self._warn_again:
            self._warn_again = trio.current_time() + WARN_AGAIN
            self.log.warning("a client sent HTTP (POST or Host:), as cross protocol scripting does", address=address)

    def refuse(self, session: Session, request: Request, frame: bytes) -> None:
        """Answer an error that says that nothing has run; a transaction remembers it."""
        if session.in_multi and session.transaction is not None:
            session.transaction.refuse(request, frame)
        else:
            self.sender.answer(request, frame)

    def _guard(self, call: Call) -> bool:
        """Give a call whose slots the engine does not check a form that it does; False: its keys may not be split."""
        if not call.session.in_multi and split(call.command, call.args) is not None:
            return True
        if len(slots_of(extract(call.command, call.args), call.args)) > 1:
            self.refuse(call.session, call.request, CROSSSLOT)
            return False
        if len(call.args) > MOST_WORDS:
            self.refuse(call.session, call.request, TOO_LARGE)
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
        if call.command.name in BY_BODY or call.command.name in BY_SHA:
            self.scripts.send(call)
            return None
        if call.command.is_keyed:
            slot = first_slot(call.command, call.args)
            if slot is None and self.vocabulary.takes_steps(call.command):
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
