"""Client-side caching: lanes of a session's own on which the shards remember what it reads, and what they push.

A session that tracks in RESP3 has a connection to every shard to itself (``Identity.own``): the engine's own
bookkeeping is then about this session alone, and what a shard pushes on such a lane is meant for it.  Invalidations go
to the client behind the replies to all it has under way, as some of these may have been read before them.

What a shard knows is lost with its lane, and a slot that moves takes its keys away from it: the client is told to
forget everything then (an ``invalidate`` of null, as after FLUSHALL).
"""

from __future__ import annotations

from collections.abc import Mapping

import trio

from proxy.codec import encode_request
from proxy.codec.reply import OK, error, integer
from proxy.control.call import Call, Handler, Step
from proxy.control.sending import Sender
from proxy.dataplane import Lane, Submitted
from proxy.sessions.session import Session
from proxy.sessions.tracking import NOT_TRACKING, OFF, Asked, Refused, Tracking, info, parse
from proxy.topology.owners import Busy

INVALIDATE = b">2\r\n$10\r\ninvalidate\r\n"
FORGET_ALL = INVALIDATE + b"_\r\n"
PING = encode_request([b"PING"])


class TrackingCommands:
    """CLIENT TRACKING, CACHING, TRACKINGINFO, GETREDIR.

    ``limit``: sessions that may track at a time; ``patience``: seconds for which CLIENT TRACKING waits for shards that
    do not answer.
    """

    def __init__(self, sender: Sender, sessions: Mapping[int, Session], limit: int, patience: float) -> None:
        self.sender = sender
        self.plane = sender.plane
        self.lanes = sender.lanes
        self.sessions = sessions
        self.limit = limit
        self.patience = patience
        self.lanes.disturbed = self.disturbed
        self.handlers: dict[bytes, Handler] = {
            b"client|tracking": self._tracking,
            b"client|caching": self._caching,
            b"client|trackinginfo": self._info,
            b"client|getredir": self._redirection,
        }

    # -- commands ----------------------------------------------------------------------------------
    def _tracking(self, call: Call) -> Step | None:
        try:
            asked = parse(call.args, self.sessions.__contains__)
            if asked.on:
                return self._begin(call, asked)
        except Refused as refused:
            self.sender.answer(call.request, error(str(refused)))
            return None
        self._end(call)
        return None

    def _end(self, call: Call) -> None:
        """CLIENT TRACKING off: back to the lanes of everybody like it."""
        session = call.session
        tracking, session.tracking = session.tracking, None
        if tracking is not None:
            try:
                self.sender.adopt(session, session.identity)
            except Busy as busy:
                session.tracking = tracking
                self.sender.answer(call.request, error(str(busy)))
                return
            del self.lanes.greetings[session.client.id]
        self.sender.answer(call.request, OK)

    def gone(self, session: Session) -> None:
        """The client is gone, and with it what it had to itself."""
        self.lanes.greetings.pop(session.client.id, None)
        session.tracking = None
        if session.identity.own:
            self.lanes.drop(session.identity)

    def _begin(self, call: Call, asked: Asked) -> Step | None:
        session = call.session
        tracking = session.tracking or Tracking()
        tracking.change(asked)
        if session.tracking is None and len(self.lanes.greetings) >= self.limit:
            raise Refused(f"ERR {self.limit} clients track keys, and no more may (lanes.private_sessions): try again")
        self.lanes.greetings[session.client.id] = [tracking.request()]
        said = call.request.raw if session.identity.own else PING
        session.tracking = tracking
        self.sender.adopt(session, session.identity)
        if session.identity.own:
            return self._take_effect(call, tracking, said)
        tracking.live = True
        self.sender.answer(call.request, OK)
        return None

    async def _take_effect(self, call: Call, tracking: Tracking, said: bytes) -> None:
        """Answer once every shard has heard of it: what anybody writes from then on, this client is told."""
        with trio.move_on_after(self.patience):
            await self.sender.of_all(call.session, self.sender.cluster.serving(), said, pinned=True)
        tracking.live = True  # a shard that did not answer makes the client forget all as soon as it does
        self.sender.answer(call.request, OK)

    def _caching(self, call: Call) -> None:
        tracking = call.session.tracking
        try:
            if tracking is None:
                raise Refused(NOT_TRACKING)
            tracking.check_caching(call.args[2])
        except Refused as refused:
            self.sender.answer(call.request, error(str(refused)))
            return
        if not isinstance(call.request, Submitted):  # of a transaction that has run it is, with what it was about
            tracking.caching = True
            self._tell(call.session, call.request.raw)
        self.sender.answer(call.request, OK)

    def begins(self, session: Session) -> None:
        """A command's turn has come, and what was before it is done, if that took several steps."""
        if session.tracking is not None and session.tracking.spent:
            self._spend(session, session.tracking)

    def begun(self, session: Session, done: bool) -> None:
        """A command was put on its way: CLIENT CACHING is over, unless it was one that leaves it (resetClient)."""
        tracking = session.tracking
        name = session.last_command
        if tracking is None or not tracking.caching or name.startswith(b"client|"):
            return
        if session.in_multi and name not in (b"exec", b"discard"):
            return
        if done:
            self._spend(session, tracking)
        else:
            tracking.spent = True

    def _spend(self, session: Session, tracking: Tracking) -> None:
        tracking.caching = tracking.spent = False
        session.client.mode = session.mode
        self._tell(session, PING)  # where the command did not go, the shard still waits for it

    def _tell(self, session: Session, raw: bytes) -> None:
        """Say something on all lanes of a session's own, in its order."""
        if not session.identity.own:
            return
        with self.plane.turn():
            for shard in self.sender.cluster.serving():
                lane = self.sender.lane(session, shard)
                self.plane.submit(lane, raw, _nobody, client=session.client, pinned=True)

    def _info(self, call: Call) -> None:
        self.sender.answer(call.request, info(call.session.tracking, call.session.protocol))

    def _redirection(self, call: Call) -> None:
        self.sender.answer(call.request, integer(OFF if call.session.tracking is None else 0))

    # -- what shards push ----------------------------------------------------------------------------
    def pushed(self, lane: Lane, frame: bytes) -> None:
        """An out-of-band message came on a lane of a session's own."""
        session = self._listening(lane.owner.identity.own)
        if session is None or not frame.startswith(INVALIDATE):
            return
        if frame == FORGET_ALL:
            self._forget_all(session)
        else:
            self._push(session, frame)

    def disturbed(self, own: int) -> None:
        """What a shard knew of this session is gone, or may have changed unseen."""
        session = self._listening(own)
        if session is not None:
            self._forget_all(session)

    def slots_moved(self) -> None:
        """Keys are served elsewhere now, where nobody knows who read them."""
        for own in list(self.lanes.greetings):
            self.disturbed(own)

    def _listening(self, own: int) -> Session | None:
        session = self.sessions.get(own)
        if session is None or session.tracking is None or not session.tracking.live or session.protocol != 3:
            return None
        return session

    def _forget_all(self, session: Session) -> None:
        client, tracking = session.client, session.tracking
        assert tracking is not None
        if not client.pending:
            if tracking.forgot_at == client.last_read:
                return  # it was told, and has not read anything since
            tracking.forgot_at = client.last_read
        self._push(session, FORGET_ALL)

    def _push(self, session: Session, frame: bytes) -> None:
        if session.blocked is not None:
            self.plane.push(session.client, frame)  # nothing it has under way reads anything but what it blocks for
        else:
            self.plane.push_behind(session.client, frame)


def _nobody(frame: bytes) -> None:
    """The reply is nobody's."""
