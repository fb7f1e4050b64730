"""How users log in: what a client gives is checked by the engine itself, and what worked is kept to log lanes in.

Passwords stay in memory; they are in no log, no ``repr`` and no label.  Some facts about the engine's AUTH:

* It may be sent again and again on one connection; where it fails, the connection stays who it was.
* Deleting a user closes the connections logged in as that user, ours too: the question is put once more then.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import trio

from proxy.codec.reply import OK, error
from proxy.routing.slot_map import Node
from proxy.topology.cluster import Cluster
from shard.client import Arg, ConnectionLost, ControlConnection, ReplyError, format_address

DEFAULT = "default"
"""The user whose commands travel with the cluster's credentials."""
WRONGPASS = "WRONGPASS invalid username-password pair or user is disabled."
PASSWORDS = 4  # of one user, that worked last: a user may have several
TRY_AGAIN = 1.0  # seconds before a node that did not answer is asked again by those who log in
USERS = 10_000  # whose passwords are kept


class Denied(ReplyError):
    """A node does not let a user in; the message is its own."""


def text_of(user: bytes) -> str:
    """A user's name as text; ``name_of`` gives the same bytes back, UTF-8 or not."""
    return user.decode("utf-8", "surrogateescape")


def name_of(user: str) -> bytes:
    return user.encode("utf-8", "surrogateescape")


class Logins:
    """See the module.

    ``primaries()``: whom to ask, best first; ``renewed(user)`` is told of another password; ``mends(address, run_id,
    user)`` says whether a node that does not know a user is about to be given it.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        primaries: Callable[[], list[Node]],
        renewed: Callable[[str], None],
        mends: Callable[[tuple[str, int], str, bytes], bool],
    ) -> None:
        self._cluster = cluster
        self._primaries = primaries
        self._renewed = renewed
        self._mends = mends
        self._doors: dict[tuple[str, int], ControlConnection] = {}
        self._opening = trio.Lock()
        self._again_at: dict[tuple[str, int], float] = {}
        self._passwords: OrderedDict[str, list[bytes]] = OrderedDict()

    def close(self) -> None:
        for door in self._doors.values():
            door.abort()

    async def check(self, user: bytes, password: bytes) -> bytes:
        """The engine's reply to AUTH, and an error of the proxy's own where no node can be asked."""
        problem = "no shard has a primary"
        for node in self._primaries():
            try:
                await self._ask(node, user, password)
            except ReplyError as refused:
                return error(str(refused))
            except ConnectionLost as lost:
                problem = str(lost)
                continue
            self._keep(text_of(user), password)
            return OK
        return error(f"CLUSTERDOWN AUTH could not be checked ({problem}): try again")

    async def _ask(self, node: Node, user: bytes, password: bytes) -> None:
        kept = self._doors.get(node.address)
        if kept is not None and not kept.closed:
            try:
                await kept.call("AUTH", user, password)
            except ConnectionLost:
                pass  # the user it was logged in as is deleted, or the node was started anew
            else:
                return
        door = await self._door(node.address, instead_of=kept)
        await door.call("AUTH", user, password)

    async def _door(self, address: tuple[str, int], instead_of: ControlConnection | None) -> ControlConnection:
        """The connection to a node on which is asked: one, however many log in."""
        async with self._opening:
            door = self._doors.get(address)
            if door is None or door is instead_of or door.closed:
                if trio.current_time() < self._again_at.get(address, 0.0):
                    raise ConnectionLost(f"{format_address(*address)} did not answer a moment ago")
                for gone in [each for each, known in self._doors.items() if known.closed]:
                    del self._doors[gone]
                try:
                    door = self._doors[address] = await self._cluster.connect(*address, name="ackgate-door")
                except ConnectionLost:
                    self._again_at[address] = trio.current_time() + TRY_AGAIN
                    raise
                self._again_at.pop(address, None)
            return door

    def _keep(self, user: str, password: bytes) -> None:
        known = self._passwords.setdefault(user, [])
        self._passwords.move_to_end(user)
        if known and known[0] == password:
            return
        self._passwords[user] = [password, *(each for each in known if each != password)][:PASSWORDS]
        while len(self._passwords) > USERS:
            self._passwords.popitem(last=False)
        self._renewed(user)

    def forget(self, user: str) -> None:
        """The user is deleted."""
        self._passwords.pop(user, None)

    async def refused(self, connection: ControlConnection, user: str, passwords: Iterable[bytes]) -> frozenset[bytes]:
        """Which of these passwords a node does not take any more.  Raises ``ConnectionLost``.

        The connection, which is the user's already, stays so.
        """
        asked = list(passwords)
        if user == DEFAULT or not asked:
            return frozenset()
        questions: list[Sequence[Arg]] = [["AUTH", name_of(user), password] for password in asked]
        replies = await connection.pipeline(*questions)
        return frozenset(each for each, said in zip(asked, replies, strict=True) if isinstance(said, ReplyError))

    async def log_in(self, connection: ControlConnection, user: str, run_id: str) -> None:
        """Make a connection, to a node in this life of its process, this user's.

        Raises ``Denied``; ``ConnectionLost``, also where it is worth another try soon.
        """
        if user == DEFAULT:
            return
        said = WRONGPASS
        tried: set[bytes] = set()
        while untried := [each for each in self._passwords.get(user, ()) if each not in tried]:
            tried.add(untried[0])  # one at a time: meanwhile somebody may log in with another
            try:
                await connection.call("AUTH", name_of(user), untried[0])
            except ReplyError as refused:
                said = str(refused)
            else:
                return
        if self._mends((connection.host, connection.port), run_id, name_of(user)):
            raise ConnectionLost(f"{connection.address} has no users yet")
        raise Denied(said)
