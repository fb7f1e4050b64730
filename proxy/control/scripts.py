"""Scripts: EVALSHA finds its script on every shard, wherever it was loaded.

The engine keeps scripts for each node by itself and never replicates them (script.c, "Scripts are not replicated"), so
a shard that joined, or whose replica took over, lacks what its clients have loaded before.  What was loaded or
evaluated through this proxy is kept here, bounded, and put in front of the first EVALSHA on each lane, also of one that
is sent again because a failover or a slot's move met it under way.  Whoever is told NOSCRIPT all the same (users who
may not load, nodes that others flushed) has it loaded and is sent again, unless something of its client has run by then
that was to come behind it.  What nobody has seen, and what SCRIPT FLUSH took away, is NOSCRIPT as ever.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from proxy.codec import decode_request, encode_request
from proxy.codec.reply import is_error
from proxy.control.call import Call, Handler
from proxy.control.permissions import Permissions
from proxy.control.sending import Sender
from proxy.dataplane import Lane, Request
from proxy.routing import CommandTable, first_slot
from proxy.sessions.session import Session
from proxy.topology.redirects import Redirects

NOSCRIPT = (b"-NOSCRIPT No matching script.\r\n", b"-NOSCRIPT No matching script. Please use EVAL.\r\n")
"""In Valkey's and Redis' own words, all of them: scripts may return any error they like (see ``elsewhere.WATCHED``)."""
BY_BODY = frozenset({b"eval", b"eval_ro"})
BY_SHA = frozenset({b"evalsha", b"evalsha_ro"})

KEPT = 8 << 20
"""Bytes of scripts that are kept; then the one that was not used for the longest time goes."""
OVERHEAD = 300  # bytes that a kept script costs beside its text
LARGEST = KEPT // 8  # bytes of one script above which it is not kept
AHEAD = 1000  # scripts that are remembered to have been put on one lane
LOADS = 10_000  # most recent loadings that are remembered
THERE = b"*1\r\n:1\r\n"  # says SCRIPT EXISTS


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


class Missed(NamedTuple):
    """An EVALSHA that was told NOSCRIPT."""

    request: Request
    lane: Lane
    decided: Callable[[bool], None]


class ScriptCommands:
    """See the module.

    Only what the engine accepted is learnt, and from users that may load: a digest that works for one user works
    for all in the engine, too.
    """

    def __init__(self, sender: Sender, redirects: Redirects, permissions: Permissions) -> None:
        self.sender = sender
        self.plane = sender.plane
        self.redirects = redirects
        redirects.prepare = self._prepare
        self.permissions = permissions
        self.book = ScriptBook()
        self.healed = 0
        self._ids: frozenset[int] = frozenset()
        """Of the commands in ``BY_SHA``."""
        self._ahead_on: dict[Lane, set[bytes]] = {}
        self._loads: OrderedDict[tuple[str, bytes], float] = OrderedDict()
        """When a script was last loaded in the life of a process."""
        self._missed: dict[tuple[str, bytes], list[Missed]] = {}
        """Who waits for a script to be loaded."""
        self.handlers: dict[bytes, Handler] = {b"script|load": self._load, b"script|flush": self._flush}

    def learn(self, table: CommandTable) -> None:
        """The engine's commands are these from now on."""
        self._ids = frozenset(command.id for command in table if command.name in BY_SHA)

    # -- on their way to a shard -------------------------------------------------------------------
    def send(self, call: Call) -> None:
        """EVAL, EVALSHA and their ``_RO`` twins: to the shard of their keys; without keys always to the same."""
        slot = first_slot(call.command, call.args)
        shard = self.sender.any_shard() if slot is None else self.sender.shard_of(slot)
        if slot is not None:
            call.request.slot = slot
        if call.command.name in BY_SHA and shard >= 0:
            # One that goes by a lane of its own goes later than what is sent now on the shared one.
            large = self.sender.is_large(call.request)
            lane = self.sender.lanes.base[shard] if large else self.sender.lane(call.session, shard)
            self._put_ahead(call.session, call.args[1], lane, call.request.born)
        self.sender.send_to(call.session, call.request, shard, self._seen(call))

    def put_ahead_of_exec(self, call: Call) -> None:
        """An EVALSHA is queued in a transaction: EXEC is to find its script."""
        slot = first_slot(call.command, call.args)
        shard = self.sender.any_shard() if slot is None else self.sender.shard_of(slot)
        if shard >= 0:
            self._put_ahead(call.session, call.args[1], self.sender.lanes.base[shard], call.request.born)

    def _prepare(self, request: Request, lane: Lane) -> None:
        """A request is sent again, maybe on another lane than before."""
        if request.command_id in self._ids and request.client is not None and not request.sticks:
            self._put_ahead(request.client.session, decode_request(request.raw)[1], lane, request.born)

    def _seen(self, call: Call) -> Callable[[bytes], None] | None:
        """What is to be told of the reply: None where nothing can be learnt."""
        if call.command.name not in BY_BODY or self.book.knows(call.args[1]):
            return None
        text = call.args[1]

        def replied(frame: bytes) -> None:
            if not is_error(frame):
                self.book.learn(text)

        return replied

    def _put_ahead(self, session: Session, digest: bytes, lane: Lane, born: float) -> None:
        """Load the script on a lane in front of the EVALSHA, so that what a client pipelines keeps its order.

        ``born``: of the EVALSHA; while they are parked, both are kept in the order of their age.
        """
        digest = digest.lower()
        text = self.book.find(digest)
        if text is None or lane.closed or not self.permissions.may_load(session):
            return
        ahead = self._ahead(lane)
        if digest in ahead:
            return
        ahead.add(digest)

        def replied(frame: bytes) -> None:
            if is_error(frame):
                ahead.discard(digest)

        self.plane.submit(lane, encode_request([b"SCRIPT", b"LOAD", text]), replied, pinned=True).born = born

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
        life = lane.owner.run_id
        if args[0].lower() not in BY_SHA or request.mended == life:
            self._said_itself(request, lane)
            self.plane.answer(request, frame)
            return
        digest = args[1].lower()
        text = self.book.find(digest)
        late = self.plane.now - request.born > self.redirects.timeouts.hold
        if text is None or late or lane.owner.leased or request.sticks:
            self.plane.answer(request, frame)
            return
        request.mended = life
        missed = Missed(request, lane, self.redirects.missed(request, lane, frame))
        if (life, digest) in self._missed:
            self._missed[life, digest].append(missed)
        else:
            self._missed[life, digest] = [missed]
            self._load_on(lane.shard, life, digest, text)

    def _load_on(self, shard: int, life: str, digest: bytes, text: bytes) -> None:
        """Load a script that was missed in this life of a process, and have all who wait for it go on."""
        base = self.sender.lanes.base[shard]
        there: list[bytes] = []

        def loaded(reply: bytes) -> None:
            before = self._loads.get((life, digest), 0.0)
            failed = is_error(reply)
            if not failed:
                self._loads[life, digest] = self.plane.now
                if len(self._loads) > LOADS:
                    self._loads.popitem(last=False)
            for missed in self._missed.pop((life, digest)):
                itself = there[:1] == [THERE] and before < missed.request.born
                if itself:
                    self._said_itself(missed.request, missed.lane)
                self.healed += not (failed or itself)
                missed.decided(not (failed or itself))

        with self.plane.turn():
            self.plane.submit(base, encode_request([b"SCRIPT", b"EXISTS", digest]), there.append, pinned=True)
            self.plane.submit(base, encode_request([b"SCRIPT", b"LOAD", text]), loaded, pinned=True)

    @staticmethod
    def _said_itself(request: Request, lane: Lane) -> None:
        """The script was there: it has answered so itself, and may have written before."""
        if request.write and request.client is not None:
            request.client.wrote(lane)
