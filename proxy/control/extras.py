"""What of a transaction its shard cannot answer, or not alone: CLIENT, SELECT, INFO, DBSIZE, FLUSHALL ...

Such a command is queued on the transaction's lane like any other, itself or something harmless in its stead: so it has
its place, and the errors of queueing are the engine's.  Once EXEC has run, and only then, what is missing is done in
the order of the places: the other shards are asked, whose keys the transaction does not touch, and what the proxy
answers is answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio

from proxy.codec import encode_request
from proxy.codec.reply import array, elements, is_error
from proxy.control.call import Call, Handler
from proxy.control.permissions import Permissions
from proxy.control.sending import Sender
from proxy.dataplane import Request, Submitted
from proxy.routing import Command, aggregate
from proxy.sessions.queued import Extra
from proxy.sessions.session import Session

STAND_IN = encode_request([b"HELLO"])
"""Changes nothing and is denied to nobody."""
RULES_CHANGED = (
    b"-NOPERM ACLs rules changed between the moment the transaction was accumulated and the EXEC call. This command is "
    b"no longer allowed for the following reason: no permission to execute the command or subcommand\r\n"
)
ON_EVERY_SHARD = frozenset({b"all_shards", b"all_nodes"})
AS_IS = frozenset({b"ping", b"echo", b"unwatch", b"publish"})
"""Commands with a way of their own whose answer from any shard is the same, or as good (PUBLISH: the receivers that
one node sees)."""
ALSO_ON_THE_LANE = frozenset({b"select", b"client|caching", b"script|load", b"script|exists", b"script|flush"})
"""Commands of the proxy's that matter to what is queued behind them."""
NOT_INSIDE = frozenset(
    {b"subscribe", b"psubscribe", b"ssubscribe", b"unsubscribe", b"punsubscribe", b"sunsubscribe", b"monitor"}
)
"""Their replies are none, or several."""


class Extras:
    """See the module.  ``handlers``: of the commands with a way of their own."""

    def __init__(self, sender: Sender, permissions: Permissions, handlers: Mapping[bytes, Handler]) -> None:
        self.sender = sender
        self._permissions = permissions
        self._handlers = handlers

    def possible(self, command: Command) -> bool:
        """Whether the command can be answered inside MULTI."""
        if command.name in NOT_INSIDE:
            return False
        if command.is_keyed:
            return command.request_policy in (None, b"multi_shard")
        return command.request_policy in (None, *ON_EVERY_SHARD) or command.name in self._handlers

    def extra(self, command: Command, args: Sequence[bytes]) -> Extra | None:
        """The command as an extra; None: its shard's answer is all."""
        if command.is_keyed or command.name in AS_IS:
            return None
        if command.name in self._handlers or command.request_policy in ON_EVERY_SHARD:
            return Extra(command, args)
        return None

    def stands_in(self, extra: Extra) -> bytes | None:
        """What is queued on the lane instead of an extra; None: the command itself."""
        name = extra.command.name
        if name == b"hello":
            # Another protocol is that of the replies behind it; who it is, is not the lane's affair.
            return None if len(extra.args) == 2 else STAND_IN
        return STAND_IN if name in self._handlers and name not in ALSO_ON_THE_LANE else None

    def soils(self, extra: Extra) -> bool:
        """Whether it leaves the lane's connection another than it was."""
        return extra.command.name == b"select" or (extra.command.name == b"hello" and len(extra.args) == 2)

    async def fill(self, session: Session, shard: int, extras: Mapping[int, Extra], frame: bytes) -> bytes:
        """EXEC's reply, which came from ``shard``, with the extras' replies at their places."""
        replies = elements(frame)
        for at, extra in sorted(extras.items()):
            replies[at] = await self._reply(session, shard, extra, replies[at])
        return array(replies)

    async def _reply(self, session: Session, shard: int, extra: Extra, own: bytes) -> bytes:
        """``own``: the reply of the transaction's shard."""
        command, args = extra
        frames: list[bytes] = []
        done = trio.Event()

        def replied(frame: bytes) -> None:
            frames.append(frame)
            done.set()

        plane = self.sender.plane
        write = command.counts_as_write
        raw = encode_request(args)
        request = Submitted(session.client, -1, command.id, raw, plane.now, write, replied)
        call = Call(session, request, args, command)
        handler = self._handlers.get(command.name)
        if handler is not None:
            if self._permissions.concerns(command, self._handlers):
                refused = await self._permissions.refusal(session, args, command)
                if refused is not None:
                    return RULES_CHANGED if refused.startswith(b"-NOPERM User ") else refused
            step = handler(call)
            if step is not None:
                await step
        elif is_error(own):
            return own  # as the others would answer
        elif command.request_policy == b"all_nodes":
            await self.sender.to_all_nodes(call)
        else:
            return await self._of_every_shard(call, shard, request, own)
        await done.wait()
        return frames[0]

    async def _of_every_shard(self, call: Call, shard: int, request: Request, own: bytes) -> bytes:
        session, args, command = call.session, call.args, call.command
        others = [each for each in self.sender.cluster.serving() if each != shard]
        frames: list[bytes] = [b""] * len(others)

        async def one(at: int, other: int) -> None:
            frames[at] = await self.sender.ask(session, self.sender.lane(session, other), request.raw, request)

        async with trio.open_nursery() as nursery:
            for at, other in enumerate(others):
                nursery.start_soon(one, at, other)
        return aggregate(command, args, [own, *frames], session.protocol)
