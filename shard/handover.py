"""What is done to two nodes so that the second leads in place of the first: pause writes, level, promote.

What lives here: single steps, each on a control connection to one node.  What may not: their order, and what is done
when one fails (``proxy.switchover``).

Some facts about the engine that this rests on (Valkey 9.1; networking.c, cluster_legacy.c):
- CLIENT PAUSE WRITE postpones writes and stops expiry; it ends by itself.  The replication offset then moves by the
  primary's pings alone, one in ``repl-ping-replica-period``.
- CLUSTER FAILOVER is answered at once; the replica then has its primary pause by itself, for that and nothing else,
  takes what is missing and asks the other primaries for their votes.  Asked again it begins anew (Valkey 8.1; before,
  it waits with the votes for four times the node timeout).  If they do not come within
  ``cluster-manual-failover-timeout`` (Valkey 9; before that and in Redis always 5 s) it gives up, and the primary goes
  on.
- Commands that were postponed are looked at again once the pause is over, by a node that is a replica by then: they
  are answered MOVED and have not run.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import trio

from shard.client import ConnectionLost, ControlConnection, ReplyError
from shard.node import parse_info

_LOOK = 0.002  # seconds between two looks at an offset or a role: commands are held meanwhile
_PATIENCE = 0.5  # seconds for an election, which takes some 50 ms, before it is asked for again
_LEAST = 0.15  # seconds that a failover is given at least: an election, and a turn of the engine's clock (100 ms)
_RESTORE = 0.3  # seconds to set one back
_TIMEOUT_SETTING = "cluster-manual-failover-timeout"

Renew = Callable[[], Awaitable[bool]]
Connect = Callable[[str, int], Awaitable[ControlConnection]]


class Standing(NamedTuple):
    """What a node says of its place in replication (INFO replication)."""

    leads: bool
    offset: int
    """Bytes of the stream that it wrote, or has taken in."""
    linked: bool
    """A replica that follows its primary and has no full copy under way."""
    online: frozenset[tuple[str, int]]
    """IP address and port of each of its replicas that is in step."""


async def standing(node: ControlConnection, within: float | None = None) -> Standing:
    """Raises ``ConnectionLost``, ``ReplyError``."""
    info = parse_info(await node.call("INFO", "replication", timeout=within))
    leads = info.get("role") == "master"
    return Standing(
        leads,
        int(info.get("master_repl_offset" if leads else "slave_repl_offset", 0)),
        info.get("master_link_status") == "up" and info.get("master_sync_in_progress", "0") == "0",
        frozenset(_online(info)),
    )


def _online(info: dict[str, str]) -> list[tuple[str, int]]:
    rows = [value for name, value in info.items() if name[:5] == "slave" and name[5:].isdigit()]
    fields = [dict(part.partition("=")[::2] for part in row.split(",")) for row in rows]
    return [(each["ip"], int(each["port"])) for each in fields if each.get("state") == "online"]


async def is_paused(primary: ControlConnection) -> bool:
    """Whether clients are paused there now; False where the engine does not tell (Redis)."""
    info = parse_info(await primary.call("INFO", "clients"))
    return info.get("paused_actions", "none") != "none"


async def pause_writes(primary: ControlConnection, seconds: float) -> None:
    """Postpone every client's writes, for so long at most.  Raises ``ConnectionLost``, ``ReplyError``."""
    await primary.call("CLIENT", "PAUSE", max(1, int(seconds * 1000)), "WRITE")


async def unpause(node: ControlConnection) -> None:
    """Let clients go on.  Raises ``ConnectionLost``, ``ReplyError``."""
    await node.call("CLIENT", "UNPAUSE")


async def level(replica: ControlConnection, offset: int, deadline: float) -> int:
    """Come back when the replica has taken in ``offset`` bytes; how many are missing at ``deadline`` (0: none).

    ``deadline`` is on trio's clock.  Raises ``ConnectionLost``, ``ReplyError``.
    """
    while True:
        missing = offset - (await standing(replica, _left(deadline))).offset
        if missing <= 0 or trio.current_time() >= deadline:
            return max(0, missing)
        await trio.sleep(_LOOK)


async def _always() -> bool:
    """There is no time that is set."""
    return True


async def promote(replica: ControlConnection, deadline: float, renew: Renew = _always) -> bool:
    """Have the replica take over, by the engine's own planned failover; False: not by ``deadline``.

    A request or a vote that was lost or refused on the way is seen by nobody, so it is asked for again, ever later;
    ``renew()`` comes before that, since the engine's time for it begins anew, and says whether there is any.
    Raises ``ReplyError`` when it refuses, ``ConnectionLost``.
    """
    await replica.call("CLUSTER", "FAILOVER", timeout=_left(deadline))
    again, patience = trio.current_time() + _PATIENCE, _PATIENCE
    while not (await standing(replica, _left(deadline))).leads:
        now = trio.current_time()
        if now >= deadline:
            return False
        if now >= again:
            if await renew():
                with suppress(ReplyError):  # elected just now
                    await replica.call("CLUSTER", "FAILOVER", timeout=_left(deadline))
            patience *= 2  # on a busy machine an election takes its time, and asking anew ends the one before
            again = now + patience
        await trio.sleep(_LOOK)
    return True


async def failover_timeout(node: ControlConnection) -> bytes | None:
    """After how many milliseconds a planned failover is given up; None where the engine does not let one say so.

    Raises ``ConnectionLost``.
    """
    try:
        found = await node.call("CONFIG", "GET", _TIMEOUT_SETTING)
    except ReplyError:
        return None  # not ours to look at
    value = found[1] if found else None
    return value if isinstance(value, bytes) else None


@asynccontextmanager
async def giving_up_at(
    moment: float, connect: Connect, nodes: Sequence[tuple[ControlConnection, bytes | None]]
) -> AsyncIterator[Renew]:
    """Have a planned failover that gets no votes given up then, on trio's clock, where the engine lets one say so.

    ``nodes`` with what :func:`failover_timeout` said, which is what they are set back to; ``connect`` reaches one whose
    connection was lost meanwhile.  To be called before it is asked for again: what is yielded.
    """
    known = [(node, value) for node, value in nodes if value is not None]

    async def renew() -> bool:
        left = moment - trio.current_time()
        if left < _LEAST:
            return False
        for node, _ in known:
            with suppress(ReplyError):  # not ours to change
                await node.call("CONFIG", "SET", _TIMEOUT_SETTING, int(left * 1000))
        return True

    try:
        await renew()
        yield renew
    finally:
        with trio.CancelScope(shield=True):
            for node, value in known:
                await _restore(node, value, connect)


async def _restore(node: ControlConnection, value: bytes, connect: Connect) -> None:
    with trio.move_on_after(_RESTORE):
        try:
            if not node.closed:
                await node.call("CONFIG", "SET", _TIMEOUT_SETTING, value)
                return
            async with await connect(node.host, node.port) as again:
                await again.call("CONFIG", "SET", _TIMEOUT_SETTING, value)
        except (ConnectionLost, ReplyError):
            return  # it is gone; started anew it has what its file says


def _left(deadline: float) -> float:
    """Seconds; a node that hangs is not waited for beyond the deadline, one that answers is heard."""
    return max(0.05, round(deadline - trio.current_time(), 2))
