"""Scripts: EVALSHA finds its script on every shard, wherever it was loaded.

The engine keeps scripts for each node by itself and never replicates them (script.c, "Scripts are not replicated"), so
a shard that joined, or whose replica took over, lacks what its clients have loaded before.  What was loaded or
evaluated through this proxy is kept here, bounded, and put in front of the first EVALSHA on each lane; whoever is told
NOSCRIPT all the same has it loaded and is sent again.  What nobody has seen, and what SCRIPT FLUSH took away, is
NOSCRIPT as ever.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

from proxy.codec import decode_request, encode_request
from proxy.codec.reply import is_error
from proxy.control.call import Call, Handler
from proxy.control.permissions import Permissions
from proxy.control.sending import Sender
from proxy.dataplane import READONLY, Lane, Request
from proxy.routing import first_slot
from proxy.topology.redirects import Redirects

NOSCRIPT = (b"-NOSCRIPT No matching script.\r\n", b"-NOSCRIPT No matching script. Please use EVAL.\r\n")
"""In Valkey's and Redis' own words, all of them: scripts may return any error they like (see ``redirects.WATCHED``)."""
BY_BODY = frozenset({b"eval", b"eval_ro"})
BY_SHA = frozenset({b"evalsha", b"evalsha_ro"})

KEPT = 8 << 20
"""Bytes of scripts that are kept; then the one that was not used for the longest time goes."""
OVERHEAD = 300  # bytes that a kept script costs beside its text
LARGEST = KEPT // 8  # bytes of one script above which it is not kept
AHEAD = 1000  # scripts that are remembered to have been put on one lane
LOADS = 10_000  # most recent loadings that are remembered
MOST_HEALED = 3  # times that one request is sent again


class ScriptBook:
    """Texts of scripts by their SHA1 digest, in 40 lower-case hexadecimal digits; the least recently used go first."""

    def __init__(self, kept: int = KEPT, largest: int = LARGEST) -> None:
        self.size = 0
        self._kept = kept
        self._largest = largest
        self._texts: OrderedDict[bytes, bytes] = OrderedDict()
        self._digests: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def knows(self, text: bytes) -> bool:
        """Whether the script is kept, or is not worth asking about; it counts as used."""
        digest = self._digests.get(text)
        if digest is None:
            return len(text) > self._largest
        self._texts.move_to_end(digest)
        return True

    def find(self, digest: bytes) -> bytes | None:
        """The script of this digest, which counts as used; None where it is not kept."""
        text = self._texts.get(digest)
        if text is not None:
            self._texts.move_to_end(digest)
        return text

    def learn(self, text: bytes) -> None:
        """Keep a script that the engine has taken."""
        if self.knows(text):
            return
        digest = hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()
        self._texts[digest] = text
        self._digests[text] = digest
        self.size += len(text) + OVERHEAD
        while self.size > self._kept:
            _, old = self._texts.popitem(last=False)
            del self._digests[old]
            self.size -= len(old) + OVERHEAD

    def forget(self) -> None:
        """SCRIPT FLUSH."""
        self._texts.clear()
        self._digests.clear()
        self.size = 0


class ScriptCommands:
    """See the module.

    Only what the engine accepted is learnt, and from users that may load: a digest that works for one user works
    for all in the engine, too.
    """

    def __init__(self, sender: Sender, redirects: Redirects, permissions: Permissions) -> None:
        self.sender = sender
        self.plane = sender.plane
        self.redirects = redirects
        self.permissions = permissions
        self.book = ScriptBook()
        self.healed = 0
        self._ahead_on: dict[Lane, set[bytes]] = {}
        self._loads: OrderedDict[tuple[str, bytes], float] = OrderedDict()
        self.handlers: dict[bytes, Handler] = {b"script|load": self._load, b"script|flush": self._flush}

    # -- on their way to a shard -------------------------------------------------------------------
    def send(self, call: Call) -> None:
        """EVAL, EVALSHA and their ``_RO`` twins: to the shard of their keys; without keys always to the same."""
        slot = first_slot(call.command, call.args)
        shard = self.sender.any_shard() if slot is None else self.sender.shard_of(slot)
        if slot is not None:
            call.request.slot = slot
        if call.command.name in BY_SHA:
            self._put_ahead(call, shard, by_itself=self.sender.is_large(call.request))
        self.sender.send_to(call.session, call.request, shard, self._seen(call))

    def put_ahead_of_exec(self, call: Call) -> None:
        """An EVALSHA is queued in a transaction: EXEC is to find its script."""
        slot = first_slot(call.command, call.args)
        self._put_ahead(call, self.sender.any_shard() if slot is None else self.sender.shard_of(slot), by_itself=True)

    def _seen(self, call: Call) -> Callable[[bytes], None] | None:
        """What is to be told of the reply: None where nothing can be learnt."""
        if call.command.name not in BY_BODY or self.book.knows(call.args[1]):
            return None
        text = call.args[1]

        def replied(frame: bytes) -> None:
            if not is_error(frame):
                self.book.learn(text)

        return replied

    def _put_ahead(self, call: Call, shard: int, by_itself: bool) -> None:
        """Load the script on the lane in front of the EVALSHA, so that what a client pipelines keeps its order.

        ``by_itself``: the EVALSHA goes by a lane of its own, and later than what is sent now on the shared one.
        """
        digest = call.args[1].lower()
        text = self.book.find(digest)
        if text is None or shard < 0 or not self.permissions.free(call.session):
            return
        lane = self.sender.lanes.base[shard] if by_itself else self.sender.lane(call.session, shard)
        ahead = self._ahead(lane)
        if digest in ahead or lane.closed:
            return
        ahead.add(digest)

        def replied(frame: bytes) -> None:
            if is_error(frame):
                ahead.discard(digest)

        self.plane.submit(lane, encode_request([b"SCRIPT", b"LOAD", text]), replied, pinned=True)

    def _ahead(self, lane: Lane) -> set[bytes]:
        """Digests of what was put on a lane already."""
        found = self._ahead_on.get(lane)
        if found is None:
            for gone in [each for each in self._ahead_on if each.closed]:
                del self._ahead_on[gone]
            found = self._ahead_on[lane] = set()
        if len(found) >= AHEAD:
            found.clear()
        return found

    # -- SCRIPT LOAD, SCRIPT FLUSH -------------------------------------------------------------------
    async def _load(self, call: Call) -> None:
        frame = self.sender.merged(call, await self.sender.of_all_nodes(call))
        if not is_error(frame) and len(call.args) == 3:
            self.book.learn(call.args[2])
        self.sender.answer(call.request, frame)

    async def _flush(self, call: Call) -> None:
        frame = self.sender.merged(call, await self.sender.of_all_nodes(call))
        if not is_error(frame):
            self.book.forget()
            self._ahead_on.clear()
            self._loads.clear()
        self.sender.answer(call.request, frame)

    # -- NOSCRIPT ----------------------------------------------------------------------------------------
    def held_back(self, request: Request, lane: Lane, frame: bytes) -> None:
        """A reply says NOSCRIPT: load what is known and send the request again, else pass the reply on."""
        args = decode_request(request.raw)
        if args[0].lower() not in BY_SHA:
            if request.write and request.client is not None:
                request.client.wrote(lane)  # a script said so itself, and may have written before
            self.plane.answer(request, frame)
            return
        digest = args[1].lower()
        text = self.book.find(digest)
        request.attempts += 1
        if text is None or not may_go_later(self.redirects, request, lane) or request.attempts > MOST_HEALED:
            self.plane.answer(request, frame)
            return
        self._heal(request, lane, frame, digest, text)

    def _heal(self, request: Request, lane: Lane, frame: bytes, digest: bytes, text: bytes) -> None:
        base = self.sender.lanes.base[lane.shard]
        life = lane.owner.run_id, digest
        there: list[bytes] = []

        def loaded(reply: bytes) -> None:
            if is_error(reply):
                self.plane.answer(request, frame)
                return
            if there[0] == b"*1\r\n:1\r\n" and self._loads.get(life, 0.0) < request.born:
                # It was there, so it is the script itself that answers so; it may have written.
                if request.write and request.client is not None:
                    request.client.wrote(lane)
                self.plane.answer(request, frame)
                return
            self._loads[life] = self.plane.now
            if len(self._loads) > LOADS:
                self._loads.popitem(last=False)
            self.healed += 1
            self.redirects.send_again(request, lane.shard)

        with self.plane.turn():
            self.plane.submit(base, encode_request([b"SCRIPT", b"EXISTS", digest]), there.append, pinned=True)
            self.plane.submit(base, encode_request([b"SCRIPT", b"LOAD", text]), loaded, pinned=True)


def may_go_later(redirects: Redirects, request: Request, lane: Lane) -> bool:
    """Whether a request that has not run may be sent again: it has no lane to itself, and nothing of its client that
    must not run before it was sent behind it."""
    if lane.owner.leased or request.sticks:
        return False
    flags = redirects.plane.command_flags
    reads = flags[request.command_id] & READONLY
    return all(
        (slot >= 0 and slot != request.slot) or (reads and flags[command_id] & READONLY)
        for slot, command_id in redirects.plane.behind(request, lane)
    )
