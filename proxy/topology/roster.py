"""The users of every node, read again and again; a node that joined or was wiped gets those of the others.

ACL users are per node, and the engine copies none of them.  What is done about that is kept simple:

* Only a node that was started anew, or was found without any user, is given users.  A user that changed or went there
  since was changed on purpose.  Nothing is ever deleted.
* A user is taken from the other nodes of the same version when more than half of them agree in it.
* The user of the proxy's own connections is never touched.
* Every other difference is reported: in the log, as a metric, in the topology.

Passwords are hashes in ACL LIST, and SETUSER takes them as such; none is logged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import structlog
import trio

from proxy.routing.glob import glob
from proxy.routing.slot_map import Node
from proxy.topology.cluster import Cluster
from proxy.topology.logins import DEFAULT, name_of
from proxy.topology.watch import NodeWatch
from shard.client import ConnectionLost, ControlConnection, ReplyError, format_address

LOOK = 0.7  # seconds between two readings of a node's users: a change elsewhere is in force here within a second
STEADY = 3  # readings of a node in which the same user lacks before it is given, or reported
SOON = 0.2  # seconds between two readings of a node that was started anew and lacks users
CONFIRM = 0.005  # seconds between two looks whether the others were read once more before a user is given
DOUBTED = 100  # users in doubt at a time; with more of them everybody is
JUDGED = 1000  # users' rules of which it is remembered what they allow
TOUCHED = 10_000  # users of one node known to have changed; with more of them it is left to itself

Users = Mapping[bytes, bytes]
"""Name -> rules, as ACL LIST has them."""


def read_users(lines: list[bytes]) -> dict[bytes, bytes]:
    """The reply to ACL LIST: ``user <name> <rules>`` each."""
    found = {}
    for line in lines:
        name, _, rules = line.removeprefix(b"user ").partition(b" ")
        found[name] = rules
    return found


def unrestricted(rules: bytes) -> bool:
    """Whether rules let their user do everything there is, everywhere."""
    words = rules.split(b" ")
    if not {b"~*", b"&*", b"+@all"} <= set(words):
        return False
    return not any(word.startswith((b"-", b"db=", b"resetdbs")) for word in words)


NO_LOADING = frozenset({b"-@all", b"-@slow", b"-@scripting", b"-script", b"-script|load"})


def loads_scripts(rules: bytes) -> bool:
    """Whether rules surely let their user load scripts."""
    words = rules.split(b" ")
    return b"+@all" in words and not any(each in NO_LOADING or each.startswith((b"db=", b"resetdbs")) for each in words)


TRANSACTING = frozenset({b"multi", b"discard", b"unwatch"})
HOLD_TRANSACTING = frozenset({b"@all", b"@transaction", b"@fast"})


def transacts(rules: bytes) -> bool:
    """Whether rules surely let their user begin a transaction and give it up: MULTI, DISCARD and UNWATCH."""
    words = rules.split(b" ")
    if any(each.startswith((b"db=", b"resetdbs")) for each in words):
        return False
    allowed: set[bytes] = set()
    for word in words:
        about = TRANSACTING if word[1:] in HOLD_TRANSACTING else TRANSACTING & {word[1:]}
        allowed = allowed | about if word.startswith(b"+") else allowed - about if word.startswith(b"-") else allowed
    return allowed == TRANSACTING


def may_hear(rules: bytes, names: Sequence[bytes], patterns: bool) -> bool:
    """Whether rules, or one of their selectors, name all these channels; or these patterns, as they are.

    Source: acl.c (``ACLCheckChannelAgainstList``, ``ACLKillPubsubClientsIfNeeded``).
    """
    allowed = [word.strip(b"()")[1:] for word in rules.split(b" ") if word.lstrip(b"(").startswith(b"&")]
    if b"*" in allowed:
        return True
    if patterns:
        return set(names) <= set(allowed)
    tests = [glob(each) for each in allowed]
    return all(any(test(name) for test in tests) for name in names)


class NodeUsers:
    """What one node's users are, in one life of its process."""

    def __init__(self, run_id: str, newborn: bool) -> None:
        self.run_id = run_id
        self.users: Users = {}
        self.digest = 0
        """Equal for equal users."""
        self._lines: list[bytes] | None = None
        self.newborn = newborn
        """It began this life while we watched: what it has is of nobody's choice."""
        self.may_be_given = newborn
        self.asked_at = 0.0
        """When it was last asked, on trio's clock."""
        self.touched: set[bytes] = set()
        """Users that became others in this life: of somebody's choice, here at least."""
        self.lacking: Counter[bytes] = Counter()
        """For how many readings it has lacked a user, or had another one than the rest."""

    def take(self, lines: list[bytes]) -> bool:
        """What ACL LIST said.  Whether anything changed."""
        if lines == self._lines:
            return False
        users = read_users(lines)
        changed = {name for name in {*users, *self.users} if users.get(name) != self.users.get(name)}
        if self._lines is not None:
            self.touched |= changed
        self._lines, self.users, self.digest = lines, users, hash(frozenset(lines))
        if len(self.touched) > TOUCHED:
            self.touched.clear()
            self.may_be_given = False
        return bool(changed)


class Roster:
    """See the module.  ``changed()`` is told when any node's users are others than before."""

    def __init__(self, cluster: Cluster, heal: bool, changed: Callable[[], None]) -> None:
        self._cluster = cluster
        self._heal = heal
        self._changed = changed
        self._own = name_of(cluster.credentials.username or DEFAULT)
        self._nodes: dict[tuple[str, int], NodeUsers] = {}
        self._look = trio.Event()
        self._differs: dict[str, list[str]] = {}
        self._doubted: set[bytes | None] = set()
        """Users who may have other rules than were read; None: all of them."""
        self._doubted_at = 0.0
        self._changing = 0
        """Changes of users that are on their way to the nodes."""
        self._giving = trio.Lock()
        self._refused = False
        self._judged: dict[tuple[Callable[[bytes], bool], bytes], bool] = {}
        """What was found out since a node was last read."""
        self.healed = 0
        """Users given to nodes."""
        self.log = structlog.get_logger("topology")

    # -- what others ask ---------------------------------------------------------------------------
    def free(self, user: bytes) -> bool:
        """Whether a user is known to be allowed everything on every node that serves."""
        return self._everywhere(unrestricted, user)

    def may_load(self, user: bytes) -> bool:
        """Whether a user is known to be allowed SCRIPT LOAD on every node that serves."""
        return self._everywhere(loads_scripts, user)

    def may_transact(self, user: str) -> bool:
        """Whether a user is known to be allowed MULTI, DISCARD and UNWATCH on every node that serves."""
        return self._everywhere(transacts, name_of(user))

    def _everywhere(self, holds: Callable[[bytes], bool], user: bytes) -> bool:
        known = self._judged.get((holds, user))
        if known is None:
            if len(self._judged) >= JUDGED:
                self._judged.clear()
            known = self._judged[holds, user] = self._judge(holds, self._own if user == DEFAULT.encode() else user)
        return known

    def _judge(self, holds: Callable[[bytes], bool], name: bytes) -> bool:
        if self._doubted and (name in self._doubted or None in self._doubted):
            return False
        read = [self._nodes[node.address].users for node in self._serving() if node.address in self._nodes]
        if not read:
            return name == self._own
        return all(holds(users.get(name, b"")) for users in read)

    def rules(self, user: bytes) -> bytes:
        """A user's rules on some node; empty for one that is not known."""
        return next((each.users[user] for each in self._nodes.values() if user in each.users), b"")

    def primaries(self) -> list[Node]:
        """The primaries that serve; first those that answer, and of these whose users are the ones most nodes have."""
        agreed = Counter(each.digest for each in self._nodes.values())

        def doubts(node: Node) -> tuple[bool, int]:
            watch, mine = self._cluster.watch_of(node), self._nodes.get(node.address)
            return watch is None or not watch.alive, -agreed[mine.digest] if mine is not None else 0

        return sorted(self._serving(), key=doubts)

    def _serving(self) -> list[Node]:
        primaries = (self._cluster.primary(shard) for shard in self._cluster.serving())
        return [node for node in primaries if node is not None]

    @property
    def differing(self) -> int:
        """On how many nodes users differ from those of most others."""
        return len(self._differs)

    def describe(self) -> dict[str, list[str]]:
        """Node -> names of the users that are not there as on most others."""
        return dict(self._differs)

    def mends(self, address: tuple[str, int], run_id: str, user: bytes) -> bool:
        """Whether a node that does not know a user, in this life of its process, is about to be given it."""
        known = self._nodes.get(address)
        others = [each for each in self._nodes.values() if each is not known]
        if not self._heal or sum(user in each.users for each in others) * 2 <= len(others):
            return False
        if known is None or known.run_id != run_id:
            return True  # it is yet to be looked at
        return known.may_be_given and user not in known.users and user not in known.touched

    # -- reading ------------------------------------------------------------------------------------
    def doubt(self, user: bytes | None) -> None:
        """A user's rules (None: everybody's) may have changed just now: nobody counts as free before they are read."""
        self._doubted.add(user if len(self._doubted) < DOUBTED else None)
        self._doubted_at = trio.current_time()
        self._judged.clear()
        self._changed()
        self._hurry()

    @asynccontextmanager
    async def changing(self, user: bytes | None) -> AsyncIterator[None]:
        """While a change of a user (None: of several) is on its way, by this proxy, nobody is given any."""
        async with self._giving:
            self._changing += 1
        try:
            yield
        finally:  # also when whoever wanted it has gone: some nodes may have taken it
            self._changing -= 1
            self.doubt(user)

    def _hurry(self) -> None:
        self._look.set()
        self._look = trio.Event()

    def _believe(self) -> None:
        """Nothing is in doubt any more, once all that serve were read since."""
        serving = [self._nodes.get(node.address) for node in self._serving()]
        if self._doubted and all(each is not None and each.asked_at > self._doubted_at for each in serving):
            self._doubted.clear()
            self._judged.clear()
            self._changed()

    async def run(self) -> None:
        """Read every node's users, for ever."""
        watched: set[NodeWatch] = set()
        async with trio.open_nursery() as nursery:

            async def follow(watch: NodeWatch) -> None:
                try:
                    await self._follow(watch)
                finally:
                    watched.discard(watch)
                    self._nodes.pop(watch.address, None)

            while True:
                for watch in self._cluster.nodes.values():
                    if watch not in watched:
                        watched.add(watch)
                        nursery.start_soon(follow, watch)
                await self._cluster.updated.wait()

    async def _follow(self, watch: NodeWatch) -> None:
        connection: ControlConnection | None = None
        try:
            while self._cluster.nodes.get(watch.address) is watch:
                look = self._look
                try:
                    if connection is None or connection.closed:
                        connection = await self._cluster.connect(*watch.address)
                    await self._read(watch, connection)
                except ReplyError as refused:
                    if not self._refused:
                        self._refused = True
                        cure = "the user of the proxy's own connections (cluster.username) needs every right"
                        self.log.warning("users cannot be read", reason=str(refused), cure=cure)
                except ConnectionLost:
                    pass  # topology tells of it
                known = self._nodes.get(watch.address)
                hurries = known is not None and known.newborn and known.lacking
                with trio.move_on_after(SOON if hurries else LOOK):
                    await look.wait()
        finally:
            if connection is not None:
                connection.abort()

    async def _read(self, watch: NodeWatch, connection: ControlConnection) -> None:
        if not watch.alive or watch.life is None or watch.loading:
            return
        run_id = watch.life.run_id
        asked_at = trio.current_time()
        lines = await connection.call("ACL", "LIST")
        known = self._nodes.get(watch.address)
        if known is None or known.run_id != run_id:
            known = self._nodes[watch.address] = NodeUsers(run_id, newborn=known is not None)
            changed = known.take(lines)
            known.may_be_given |= known.users.keys() <= {DEFAULT.encode(), self._own}
        else:
            changed = known.take(lines)
        known.asked_at = asked_at
        self._judged.clear()
        if changed:
            self._changed()
        self._believe()
        await self._compare(watch, known, connection)

    # -- comparing ------------------------------------------------------------------------------------
    async def _compare(self, watch: NodeWatch, mine: NodeUsers, connection: ControlConnection) -> None:
        if all(each.digest == mine.digest for each in self._nodes.values()):
            mine.lacking.clear()
            self._report(watch, [])
            return
        wanted = self._of_most(watch, mine)
        others = {name for name in mine.users.keys() | wanted.keys() if mine.users.get(name) != wanted.get(name)}
        mine.lacking = Counter({name: mine.lacking[name] + 1 for name in others - {self._own}})
        for name, readings in mine.lacking.items() if self._heal and mine.may_be_given else ():
            soon = mine.newborn and name not in mine.users and readings > 1
            if (readings < STEADY and not soon) or name not in wanted or name in mine.touched:
                continue
            async with self._giving:
                if await self._is_still_so(watch, mine, name, wanted[name]):
                    await self._give(watch, connection, name, wanted[name])
        self._report(watch, sorted(name for name, readings in mine.lacking.items() if readings >= STEADY))

    def _of_most(self, watch: NodeWatch, mine: NodeUsers) -> dict[bytes, bytes]:
        """The users in which most nodes agree.  The node itself has a say where it has such a user by choice."""
        alike = [each for address, each in self._nodes.items() if self._same_version(watch, address)]
        votes = Counter(pair for each in alike for pair in each.users.items())
        wanted = {}
        for (name, rules), count in votes.items():
            has_a_say = name in mine.users and not (mine.newborn and name not in mine.touched)
            others = len(alike) - (not has_a_say)
            own = not has_a_say and mine.users.get(name) == rules
            if (count - own) * 2 > others or not others:
                wanted[name] = rules
        return wanted

    async def _is_still_so(self, watch: NodeWatch, mine: NodeUsers, name: bytes, rules: bytes) -> bool:
        """Whether most of the others that answer have the user, asked once more: it may have been deleted just now."""
        since = trio.current_time()
        self._hurry()
        with trio.move_on_after(SOON):
            while any(each.asked_at < since for each in self._others(watch, mine)):  # noqa: ASYNC110 -- seldom, brief
                await trio.sleep(CONFIRM)
        others = self._others(watch, mine)
        have = [each for each in others if each.users.get(name) == rules and each.asked_at >= since]
        return not self._changing and len(have) * 2 > len(others)

    def _others(self, watch: NodeWatch, mine: NodeUsers) -> list[NodeUsers]:
        """What is known of the other nodes of the same version that answer."""
        alive = (address for address, each in self._cluster.nodes.items() if each.alive)
        known = [self._nodes[each] for each in alive if each in self._nodes and self._same_version(watch, each)]
        return [each for each in known if each is not mine]

    def _same_version(self, watch: NodeWatch, address: tuple[str, int]) -> bool:
        other = self._cluster.nodes.get(address)
        return other is not None and (other.engine, other.version) == (watch.engine, watch.version)

    async def _give(self, watch: NodeWatch, connection: ControlConnection, name: bytes, rules: bytes) -> None:
        await connection.call("ACL", "SETUSER", name, "reset", *rules.split(b" "))
        self.healed += 1
        self.log.info("user given to a node that lacked it", node=format_address(*watch.address), user=_shown(name))
        self._hurry()

    def _report(self, watch: NodeWatch, names: list[bytes]) -> None:
        address = format_address(*watch.address)
        shown = [_shown(name) for name in names]
        if shown and self._differs.get(address) != shown:
            cure = "ACL SETUSER or DELUSER through the proxy reaches every node"
            self.log.warning("users differ from those of most nodes", node=address, users=shown, cure=cure)
        if shown:
            self._differs[address] = shown
        else:
            self._differs.pop(address, None)


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "replace")
