"""A local cluster as one thing: started, watched, stopped.

The rule for starting a dead node again: **a dead primary must not come back faster than it is missed**. Restarted at
once, with less on disk than it acknowledged, it would make its replica forget too. What the code below does about it:

* A node nobody replicates (a replica, a primary without replicas, a primary already replaced) is started at once.
* A primary with a living replica is left down until the replica took over, even with ``aof: always``, where its disk
  has everything it acknowledged and waiting is not needed for safety. It is better for users all the same: a returning
  primary serves nothing for 2 s (``CLUSTER_WRITABLE_DELAY`` in the engine's cluster code) and while it reads its file,
  which grows with the data, and a node that is loading answers the cluster's pings and so puts the election off for as
  long. A takeover is bounded (1.25 to 1.8 times the node timeout) and ends on a warm node.
* With ``everysec`` waiting is needed: while an fsync is slow the engine keeps up to 2 s of acknowledged writes in its
  own memory (``flushAppendOnlyFile``, write postponed), which die with the process. The replica has them.
* If no election can come (no majority of primaries left) or none came in time, a primary with an AOF is started: its
  disk is the best there is. One without an AOF never is: it would come back empty and empty its replica. A person can
  end that state by ``CLUSTER FAILOVER TAKEOVER`` on the replica; the event says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import trio

from shard.binary import find_server
from shard.client import ConnectionLost, Credentials, ReplyError
from shard.cluster_nodes import NodeRow, myself, parse_cluster_nodes
from shard.errors import ShardError
from shard.form import Progress, form_groups, no_progress
from shard.layout import (
    DirectoryInUseError,
    DirectoryLock,
    Layout,
    PortReservation,
    create_layout,
    load_layout,
    lock_directory,
    save_layout,
    zone_of,
)
from shard.member import for_all
from shard.node import Node
from shard.settings import ClusterSettings

_BACKOFF_FIRST_SECONDS = 0.5
_BACKOFF_LAST_SECONDS = 10.0
# A node that ran this long before it died starts with the first back-off again.
_STEADY_SECONDS = 30.0
_POLL_SECONDS = 0.2
_ASK_SECONDS = 1.0
_LOCK_PATIENCE_SECONDS = 1.0
# An election takes 1.25 to 1.8 node timeouts; a first one may fail and is tried again after 4.
_TAKEOVER_TIMEOUTS = 10

OnEvent = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Restart:
    """One node started again. ``down`` is in seconds, ``status`` how it had ended, ``reason`` why it was let start."""

    node: str
    address: str
    status: int
    down: float
    reason: str


class Cluster:
    """The nodes of one data folder: ``start``, then ``watch`` for as long as it runs, then ``stop``; or ``running``."""

    def __init__(
        self,
        directory: str | Path,
        settings: ClusterSettings | None = None,
        *,
        log: Any = None,
        on_event: OnEvent | None = None,
    ) -> None:
        self.directory = Path(directory).expanduser().absolute()
        self.settings = settings if settings is not None else ClusterSettings()
        self.nodes: list[Node] = []
        self.warnings: list[str] = []
        self.restarts: list[Restart] = []
        self._log = log if log is not None else structlog.get_logger()
        self._on_event = on_event
        self._lock: DirectoryLock | None = None

    def seeds(self) -> list[tuple[str, int]]:
        """Return host and port of every node."""
        return [(node.host, node.port) for node in self.nodes]

    @property
    def credentials(self) -> Credentials:
        """What the nodes ask of those who connect."""
        return self.nodes[0].credentials if self.nodes else Credentials()

    async def start(self, progress: Progress = no_progress) -> list[str]:
        """Start all nodes, form the cluster (or find it formed), return warnings, one line each.

        When it cannot, or is cancelled, everything started is stopped again. Raises ``ShardError``.
        """
        try:
            await self._start(progress)
        except BaseException:
            self.kill()
            await self.stop()
            raise
        return self.warnings

    async def _start(self, progress: Progress) -> None:
        password = read_password(self.settings.password_file)
        server = find_server(self.settings.binary)
        self._lock = await _hold(self.directory)
        reservation = PortReservation()
        try:
            layout = self._find_or_make_layout(reservation)
            self.nodes = [
                Node(
                    planned,
                    self.directory / planned.name,
                    server,
                    self.settings,
                    zone=zone_of(self.settings, planned),
                    hash_seed=layout.hash_seed,
                    password=password,
                )
                for planned in layout.nodes
            ]
            await self._start_nodes(progress)
        finally:
            reservation.release()
        self.warnings = await form_groups(
            self._groups(), credentials=self.credentials, progress=progress, timeout=self.settings.start_timeout
        )

    def _find_or_make_layout(self, reservation: PortReservation) -> Layout:
        layout = load_layout(self.directory, self.settings)
        if layout is None:
            layout = create_layout(self.settings, reservation)
            save_layout(self.directory, layout)
        return layout

    def _groups(self) -> list[list[tuple[str, int]]]:
        shards = range(1, self.settings.shards + 1)
        return [[(node.host, node.port) for node in self.nodes if node.shard == shard] for shard in shards]

    async def _start_nodes(self, progress: Progress) -> None:
        done = 0
        progress("start", done, len(self.nodes))

        async def start(node: Node) -> None:
            nonlocal done
            await node.start()
            done += 1
            progress("start", done, len(self.nodes))

        await for_all(start, [(node,) for node in self.nodes])

    async def watch(self) -> None:
        """Start nodes again that die, by the rule above, until cancelled. With ``restart: false`` only tell of them."""
        async with trio.open_nursery() as nursery:
            for node in self.nodes:
                nursery.start_soon(self._tend, node)

    async def stop(self) -> None:
        """Stop all nodes in order and let the folder go. Not to be cancelled; bounded by the nodes' own bounds.

        Primaries first: told to end, one waits for its replicas to have everything it has, and can only do so while
        they run. SIGKILL after a bound, so that nothing survives.
        """
        with trio.CancelScope(shield=True):
            primaries = await self._primaries()
            await for_all(Node.stop, [(node,) for node in primaries])
            await for_all(Node.stop, [(node,) for node in self.nodes if node not in primaries])
        if self._lock is not None:
            self._lock.release()

    def kill(self) -> None:
        """SIGKILL every node at once, without waiting. Acknowledged writes may be lost with ``aof: off``."""
        for node in self.nodes:
            node.kill()

    async def _primaries(self) -> list[Node]:
        rows = await self._ask_all()
        return [node for node in self.nodes if node.name in rows and rows[node.name].is_primary]

    async def _ask_all(self) -> dict[str, NodeRow]:
        """Return what each living node says of itself; who does not answer within a second is left out."""
        answers: dict[str, NodeRow] = {}

        async def ask(node: Node) -> None:
            try:
                async with await node.connect(timeout=_ASK_SECONDS) as connection:
                    answers[node.name] = myself(parse_cluster_nodes(await connection.call("CLUSTER", "NODES")))
            except (ConnectionLost, ReplyError, ValueError):
                return

        await for_all(ask, [(node,) for node in self.nodes if node.alive])
        return answers

    async def _tend(self, node: Node) -> None:
        delay = _BACKOFF_FIRST_SECONDS
        while True:
            status = await node.wait()
            died_at = trio.current_time()
            self._tell("node_died", node, status=status, last_words=node.last_words())
            if not self.settings.restart:
                return
            if died_at - node.started_at > _STEADY_SECONDS:
                delay = _BACKOFF_FIRST_SECONDS
            started = False
            while not started:
                await trio.sleep(delay)
                delay = min(delay * 2, _BACKOFF_LAST_SECONDS)
                started = await self._start_again(node, status, died_at)

    async def _start_again(self, node: Node, status: int, died_at: float) -> bool:
        reason = await self._until_it_may_return(node, died_at)
        try:
            await node.start()
        except ShardError as error:
            self._tell("node_start_failed", node, error=str(error))
            return False
        restart = Restart(node.name, node.address, status, trio.current_time() - died_at, reason)
        self.restarts.append(restart)
        self._tell("node_restarted", node, down=round(restart.down, 3), reason=reason)
        return True

    async def _until_it_may_return(self, node: Node, died_at: float) -> str:
        """Wait until the rule lets ``node`` start, return why it does."""
        dead_id = node.read_id()
        told = False
        while True:
            rows = await self._ask_all()
            if dead_id is None or not self._heirs(node, dead_id, died_at, rows):
                return "no living replica is waiting to take over"
            stuck = self._election_is_stuck(rows, died_at)
            if stuck and self.settings.aof != "off":
                return stuck
            if stuck and not told:
                told = True
                self._tell("node_waits", node, reason=stuck, cure="CLUSTER FAILOVER TAKEOVER on a replica of its shard")
            await trio.sleep(_POLL_SECONDS)

    def _heirs(self, dead: Node, dead_id: str, died_at: float, rows: dict[str, NodeRow]) -> list[Node]:
        """Return living nodes that, by their own word, still follow the dead one and hold its data in memory.

        One of its shard that does not answer may be such a node; one started since the death has nothing to give.
        """
        return [
            node
            for node in self.nodes
            if node is not dead
            and node.alive
            and node.started_at < died_at
            and (rows[node.name].primary_id == dead_id if node.name in rows else node.shard == dead.shard)
        ]

    def _election_is_stuck(self, rows: dict[str, NodeRow], died_at: float) -> str:
        """Return why no takeover is to be expected, empty while one is."""
        everybody_answered = len(rows) == sum(node.alive for node in self.nodes)
        voters = sum(row.is_primary and bool(row.slots) for row in rows.values())
        if everybody_answered and voters <= self.settings.shards // 2:
            return "no majority of primaries is left to elect another"
        if trio.current_time() - died_at > _TAKEOVER_TIMEOUTS * self.settings.node_timeout_ms / 1000:
            return "no replica took over in time"
        return ""

    def _tell(self, event: str, node: Node, **fields: Any) -> None:
        fields = {"node": node.name, "address": node.address, **fields}
        (self._log.info if event == "node_restarted" else self._log.warning)(event, **fields)
        if self._on_event is not None:
            self._on_event(event, fields)


@asynccontextmanager
async def running(
    directory: str | Path,
    settings: ClusterSettings | None = None,
    *,
    progress: Progress = no_progress,
    log: Any = None,
    on_event: OnEvent | None = None,
) -> AsyncIterator[Cluster]:
    """A cluster that is started, watched while the block runs, and stopped. Raises ``ShardError``."""
    cluster = Cluster(directory, settings, log=log, on_event=on_event)
    await cluster.start(progress)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cluster.watch)
            yield cluster
            nursery.cancel_scope.cancel()
    finally:
        await cluster.stop()


async def _hold(directory: Path) -> DirectoryLock:
    # One that was killed a moment ago may still be going: it lets go when the kernel has cleared it away.
    deadline = trio.current_time() + _LOCK_PATIENCE_SECONDS
    while True:
        try:
            return lock_directory(directory)
        except DirectoryInUseError:
            if trio.current_time() > deadline:
                raise
        await trio.sleep(_POLL_SECONDS / 10)


def read_password(file: str | None) -> str | None:
    """Return the first line of a password file, None without a file. Raises ``ShardError``."""
    if file is None:
        return None
    try:
        password = Path(file).expanduser().read_text().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ShardError(
            f"cannot read the password file {file} ({reason}): correct the setting `password_file`"
        ) from None
    if not password:
        raise ShardError(f"the password file {file} has an empty first line: write the password there")
    return password
