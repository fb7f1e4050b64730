"""The command table at work: read from the engine, and put before the data plane as what it may do by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog
import trio

from proxy.codec import BARRIER as STOPS
from proxy.codec import Limits, ParseTable
from proxy.control.call import Handler
from proxy.control.connection import ConnectionCommands
from proxy.control.permissions import Permissions
from proxy.control.policy import DANGEROUS, LATER
from proxy.control.pubsub import BARRIERS as PUBSUB_BARRIERS
from proxy.control.sending import Sender, unsure
from proxy.dataplane import BARRIER, READONLY, WRITE, Tally
from proxy.routing import Command, CommandTable, splitter, whole
from shard.client import ConnectionLost, ReplyError

BARRIERS = frozenset(
    {
        *(b"auth", b"hello", b"reset", b"quit", b"select", b"acl"),
        *(b"multi", b"exec", b"discard", b"watch", b"unwatch"),
        *PUBSUB_BARRIERS,
        *(b"client", b"wait", b"waitaof", b"scan", b"randomkey", b"script", b"function", b"info"),
    }
)
"""Commands that change how the session's next one travels, or take several steps of their own."""

REFRESH = 5.0  # seconds at least between two readings of COMMAND because of an unknown name


class Vocabulary:
    """See the module.

    ``handlers``: of the commands with a way of their own; ``names_to_stop(table)`` are those that a pause may postpone;
    ``learned(table)`` is told of each new table.
    """

    def __init__(
        self,
        sender: Sender,
        connection: ConnectionCommands,
        permissions: Permissions,
        handlers: Mapping[bytes, Handler],
        limits: Limits,
        *,
        names_to_stop: Callable[[CommandTable], set[bytes]],
        learned: Callable[[CommandTable], None],
    ) -> None:
        self.plane = sender.plane
        self.cluster = sender.cluster
        self.connection = connection
        self.permissions = permissions
        self.table = CommandTable(())
        self.tallies: list[Tally] = []
        """Where commands are counted by their ids."""
        self.log = structlog.get_logger("control")
        self._handlers = handlers
        self._limits = limits
        self._names_to_stop = names_to_stop
        self._learned = learned
        self._one_by_one = False
        self._monitored = False
        self._refresh = trio.Event()

    # -- from the engine -----------------------------------------------------------------------------
    async def run(self) -> None:
        """Read COMMAND again when the engine may have changed, for ever."""
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

    # -- to the data plane -----------------------------------------------------------------------------
    def learn(self, table: CommandTable) -> None:
        """Route by this command table from now on."""
        if table.digest == self.table.digest:
            return
        for tally in self.tallies:
            tally.fit(max(command.id for command in table))
            for former in self.table:
                present = table.by_id(former.id)
                if present is not None and present.name != former.name:
                    tally.forget(former.id)
        self.table = table
        self._learned(table)
        self._prepare()
        self.log.info("command table", commands=len(table))

    def _prepare(self) -> None:
        """Have the data plane go by the table."""
        table = self.table
        barriers = {command.name.partition(b"|")[0] for command in table if self.takes_steps(command)} | BARRIERS
        barriers |= {command.name for command in table if command.is_blocking}
        barriers |= self._names_to_stop(table)
        overrides = {name.partition(b"|")[0] for name in (*self._handlers, *DANGEROUS, *LATER)}
        if self._one_by_one:
            # Barriers all: nothing of a client is sent behind a command that may have to be sent again.
            barriers |= {command.name.partition(b"|")[0] for command in table if command.has_many_keys}
        if self._monitored:
            overrides |= {command.name for command in table}
        parse = table.parse_table(barriers, overrides, self._limits)
        highest = max(command.id for command in table)
        flags = bytearray(2 * highest + 1)
        for command in table:
            flags[command.id] = (WRITE if command.counts_as_write else 0) | (READONLY if command.is_readonly else 0)
            if command.id in parse.barriers:
                flags[command.id] |= BARRIER
            flags[command.id + highest] = flags[command.id] | BARRIER
        ways = {command.id: splitter(command, unsure) for command in table if command.id not in parse.barriers}
        splitters = {} if self._monitored else {command_id: way for command_id, way in ways.items() if way is not None}
        splitters |= {command_id + highest: whole(way) for command_id, way in splitters.items()}
        self.plane.set_commands(parse, bytes(flags), splitters)
        self.connection.unauthenticated = parse.with_limits(self._limits._replace(unauthenticated=True))
        self.connection.watched = self._watched(parse, highest)
        self.users_changed()

    def _watched(self, parse: ParseTable, twins: int) -> ParseTable:
        """For users who may not do everything: what is to be checked before it is begun stops the parser.

        Such a command goes by another id there, ``twins`` above its own: the flags of an id are everybody's.  One of
        several keys need not stop where all of it goes to one slot.
        """
        entries = []
        for command in self.table:
            if b"|" in command.name:
                continue
            each_id, key, kind = parse.find(command.name)
            family = (command, *command.subcommands.values())
            if any(self.is_checked(member) for member in family):
                each_id, kind = each_id + twins, STOPS
            entries.append((command.name, each_id, key, kind))
        return ParseTable(entries, self._limits)

    def is_checked(self, command: Command) -> bool:
        """Whether a user's leave is to be had from the engine before anything is done."""
        if command.request_policy == b"multi_shard" and command.counts_as_write:
            return True  # the shards would each look at their own keys only, and some of them begin
        return self.permissions.concerns(command, self._handlers)

    def users_changed(self) -> None:
        """Other users than before may do everything."""
        for session in self.connection.sessions.values():
            self.connection.set_table(session)

    def one_by_one(self, on: bool) -> None:
        """Whether a client's next command waits for the reply to one of several keys."""
        self._one_by_one = on
        self._prepare()

    def monitored(self, on: bool) -> None:
        """Whether every command comes to control, for MONITOR to see."""
        self._monitored = on
        self._prepare()

    def paused(self) -> None:
        """Other commands than before are postponed."""
        if len(self.table):
            self._prepare()

    @staticmethod
    def takes_steps(command: Command) -> bool:
        """Whether more is to be done for it than putting requests on lanes in one go."""
        if command.request_policy == b"all_nodes":
            return True
        return command.is_keyed and not command.fixed_key and any(spec.incomplete for spec in command.key_specs[:1])
