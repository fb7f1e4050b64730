"""What a user may do of the commands the proxy answers itself: the engine is asked (ACL DRYRUN), and remembered.

A command that goes to a shard as it came, on the session's own lanes, needs none of this: the engine checks it there.
Some facts about ACL DRYRUN:

* It judges in the database of the connection it came on (Valkey 9.1 has rules about databases).
* It names the key or the channel in its refusal; the refusal of a command proper does not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from proxy.codec.reply import error
from proxy.routing import Command
from proxy.sessions.session import Session
from proxy.topology.cluster import Cluster
from proxy.topology.logins import DEFAULT, name_of
from proxy.topology.roster import Roster, may_hear
from shard.client import ConnectionLost, ControlConnection, ReplyError

VERDICTS = 10_000  # remembered
LONG = 512  # bytes of a command above which its verdict is not worth remembering
ALWAYS = frozenset({b"auth", b"hello", b"quit", b"reset"})
"""What every user may do (the engine's flag no_auth)."""
BY_ARGUMENTS = frozenset(
    {
        *(b"subscribe", b"psubscribe", b"ssubscribe", b"publish", b"spublish", b"select", b"swapdb", b"move", b"copy"),
    }
)
"""Commands without keys of which the arguments (channels, databases) decide."""
OF_THE_SHARDS = frozenset(
    {
        *(b"acl|setuser", b"acl|deluser", b"acl|load", b"acl|log", b"publish", b"spublish"),
        *(b"script|load", b"script|flush", b"script|exists", b"function|load", b"function|delete"),
    }
)
"""Commands with a way of their own that still reach shards as they came, on the session's own lanes."""


class Permissions:
    """See the module."""

    def __init__(self, cluster: Cluster, roster: Roster) -> None:
        self._cluster = cluster
        self._roster = roster
        self._verdicts: OrderedDict[tuple[bytes, ...], bytes | None] = OrderedDict()
        self._generation = 0
        self._connections: dict[tuple[str, int], ControlConnection] = {}
        self.asked = 0
        """How often the engine was."""

    def free(self, session: Session) -> bool:
        """Whether the session's user is known to be unrestricted (``+@all ~* &*``): nothing has to be asked."""
        return self._roster.free(name_of(session.identity.user))

    def may_load(self, session: Session) -> bool:
        """Whether the session's user is known to be allowed SCRIPT LOAD."""
        return self._roster.may_load(name_of(session.identity.user))

    def concerns(self, command: Command, handlers: Mapping[bytes, object]) -> bool:
        """Whether a command is to be checked here; ``handlers`` are those with a way of their own."""
        name = command.name
        if name in ALWAYS or name in OF_THE_SHARDS or name not in handlers:
            return False
        return not command.is_keyed or name in (b"ssubscribe", b"sunsubscribe")

    def forget(self) -> None:
        """Some user's rules are, or may be, others than before."""
        self._generation += 1
        self._verdicts.clear()

    def close(self) -> None:
        for connection in self._connections.values():
            connection.abort()

    async def refusal(self, session: Session, args: Sequence[bytes], command: Command | None = None) -> bytes | None:
        """The engine's error for this command of the session's user, None where it may run.

        ``args``: the whole command as the client sent it; a SUBSCRIBE with all its channels is one call.  With
        ``command``, whose arguments do not decide, the answer serves for all of its kind.  Nothing is asked for a user
        who is unrestricted; all else is asked once and remembered until any user changes.
        """
        if self.free(session):
            return None
        user, database = name_of(session.identity.user), b"%d" % session.identity.database
        words = list(args) if command is None or self._arguments_decide(user, command) else [command.name]
        key = (user, database, *words)
        if key in self._verdicts:
            self._verdicts.move_to_end(key)
            return self._verdicts[key]
        generation = self._generation
        verdict, certain = await self._ask(user, database, args)
        if certain and generation == self._generation and sum(map(len, words)) <= LONG:
            self._verdicts[key] = verdict
            while len(self._verdicts) > VERDICTS:
                self._verdicts.popitem(last=False)
        return verdict

    def may_hear(self, session: Session, names: Sequence[bytes], patterns: bool) -> bool:
        """Whether the user's rules name these channels, be it that it may not subscribe any more."""
        return may_hear(self._roster.rules(name_of(session.identity.user)), names, patterns)

    async def ask(self, address: tuple[str, int], *args: str) -> Any:
        """A node's reply to the proxy's own question.  Raises ``ReplyError``, ``ConnectionLost``."""
        return await (await self._connection(address)).call(*args)

    def _arguments_decide(self, user: bytes, command: Command) -> bool:
        if command.is_keyed or command.name in BY_ARGUMENTS:
            return True
        # An older way to write rules allows a command with one first argument only: +select|0.
        return b"|" not in command.name and b"+%s|" % command.name in self._roster.rules(user)

    async def _ask(self, user: bytes, database: bytes, args: Sequence[bytes]) -> tuple[bytes | None, bool]:
        """(the refusal, whether it will stay so)."""
        self.asked += 1
        name = name_of(self._cluster.credentials.username or DEFAULT) if user == DEFAULT.encode() else user
        problem = "no shard has a primary"
        for node in 2 * self._roster.primaries():  # a node that hung up on the connection may take another
            try:
                connection = await self._connection(node.address)
                _, said = await connection.pipeline(["SELECT", database], ["ACL", "DRYRUN", name, *args])
            except (ConnectionLost, ReplyError) as lost:
                problem = str(lost)
                continue
            if isinstance(said, ReplyError):
                return error(f"NOPERM {str(said).removeprefix('ERR ')}"), False
            return (None if said == b"OK" else _refused(said)), True
        return error(f"CLUSTERDOWN permissions could not be checked ({problem}): try again"), False

    async def _connection(self, address: tuple[str, int]) -> ControlConnection:
        kept = self._connections.get(address)
        if kept is not None and not kept.closed:
            return kept
        for gone in [each for each, connection in self._connections.items() if connection.closed]:
            del self._connections[gone]
        made = await self._cluster.connect(*address)
        raced = self._connections.get(address)
        if raced is not None:
            made.abort()
            return raced
        self._connections[address] = made
        return made


def _refused(said: bytes) -> bytes:
    """The engine's refusal of a command in place of that of its dry run (acl.c: getAclErrorMessage)."""
    if said.endswith(b"' key"):
        return b"-NOPERM No permissions to access a key\r\n"
    if said.endswith(b"' channel"):
        return b"-NOPERM No permissions to access a channel\r\n"
    if b" has no permissions to access database " in said:
        return b"-NOPERM No permissions to access database\r\n"
    return error(b"NOPERM " + said)
