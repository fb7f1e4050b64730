"""WAIT and WAITAOF: the rounds of all shards, and the questions put to them; an answer, or no number at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

import trio

from proxy.acks.arguments import Asked
from proxy.acks.incarnation import Incarnation, Incarnations, Stamp
from proxy.acks.pace import Pace
from proxy.acks.primary import Primary
from proxy.acks.question import LAST_LOOK, Counts, Memory, Question, Unconfirmed, Untrusted, Writer, least
from proxy.acks.rounds import ShardRounds
from proxy.acks.steps import Recorder
from proxy.acks.waiters import MarkerRefused, Run
from proxy.codec.reply import error
from proxy.dataplane import DataPlane
from shard.client import ControlConnection, ReplyError

HANDOVER = 3.0  # seconds for which a primary that leads no more may take to show who carries its life on
HANDOVER_LOOK = 0.02  # seconds between two looks meanwhile
GONE = (
    b"-UNBLOCKED force unblock from blocking operation, the primary that took writes of this session "
    b"is no longer in charge of them: whether they were kept is not known\r\n"
)


class Acks:
    """The rounds of all shards, and the waits put to them.

    ``connect(shard)`` opens a connection to a shard's present primary; ``distrust(shard, primary)`` has it found out
    why its WAITAOF cannot be believed (None: it can); ``restamp(shard, tick, generation)`` has the lanes of a shard
    stamp writes anew; ``shards()`` are the indexes of today's shards; ``ended()`` is called when a life
    has ended, so that its lanes take nothing new; ``answers(node_id)`` says whether a node still answers, and
    ``hint()`` has the nodes probed now; ``recorder(shard)`` is told what a shard's rounds measure.
    """

    def __init__(
        self,
        plane: DataPlane,
        *,
        connect: Callable[[int], Awaitable[ControlConnection]],
        distrust: Callable[[int, Primary], Run[str]],
        restamp: Callable[[int, int, int], None],
        shards: Callable[[], Sequence[int]],
        ended: Callable[[], None],
        answers: Callable[[str], bool],
        hint: Callable[[], None],
        recorder: Callable[[int], Recorder | None] = lambda shard: None,
    ) -> None:
        self.incarnations = Incarnations(self.lives_changed)
        self.plane = plane
        self.pace = Pace(partial(plane.tell, None))
        self._ended = ended
        self._answers = answers
        self._hint = hint
        self.shards = shards
        self.open = 0
        self.unconfirmed = 0
        """Waits that got no number."""
        self.alone = 0
        """Waits that did not go the usual way: see ``Crowd``."""
        self._connect = connect
        self._distrust = distrust
        self._restamp = restamp
        self._recorder = recorder
        self._rounds: dict[int, ShardRounds] = {}
        self._lives: dict[int, set[Incarnation]] = {}
        self._nursery: trio.Nursery | None = None
        self.changed = trio.Event()
        """Set, and another in its place, when a life has ended or was carried on."""

    async def run(self) -> None:
        """Serve the rounds of every shard, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.pace.run)
            for rounds in self._rounds.values():
                nursery.start_soon(rounds.run)
            await self._settle_lives()

    async def _settle_lives(self) -> None:
        """Have the nodes of lives that ended looked at, until it is known whether another carries them on; for ever."""
        since: dict[Incarnation, float] = {}
        while True:
            changed = self.changed
            now = trio.current_time()
            since = {life: since.get(life, now) for life in self.incarnations.unsettled}
            for life, started in since.items():
                if now - started > HANDOVER or not self._answers(life.node_id):
                    self.incarnations.end(life)
            if not self.incarnations.unsettled:
                await changed.wait()
                continue
            self._hint()
            await trio.sleep(HANDOVER_LOOK)

    def of(self, shard: int) -> ShardRounds:
        """The rounds of a shard, begun when first asked for."""
        rounds = self._rounds.get(shard)
        if rounds is None:
            rounds = self._rounds[shard] = ShardRounds(
                shard,
                self.incarnations,
                self.plane,
                self.pace,
                connect=lambda: self._connect(shard),
                ticked=self._ticked,
                distrust=lambda primary: self._distrust(shard, primary),
                recorder=self._recorder(shard),
            )
            if self._nursery is not None:
                self._nursery.start_soon(rounds.run)
        return rounds

    @property
    def rounds(self) -> int:
        """Rounds put to shards so far."""
        return sum(rounds.rounds for rounds in self._rounds.values())

    @property
    def markers_refused(self) -> int:
        """Markers that shards did not take."""
        return sum(rounds.markers.refused for rounds in self._rounds.values())

    @property
    def markers_raised(self) -> int:
        """Markers put on a lane that carried one already."""
        return sum(rounds.markers.raised for rounds in self._rounds.values())

    def stamp(self, shard: int, incarnation: Incarnation) -> Stamp:
        """What a write answered now on a lane of ``incarnation`` is remembered with."""
        rounds = self.of(shard)
        lives = self._lives.setdefault(shard, set())
        lives.difference_update([life for life in lives if life.ended])
        lives.add(incarnation)
        return Stamp(incarnation, rounds.tick, rounds.generation)

    def _ticked(self, shard: int) -> None:
        rounds = self.of(shard)
        self._restamp(shard, rounds.tick, rounds.generation)

    def primary_changed(self, shard: int, node_id: str | None) -> None:
        """Topology says that ``node_id`` (None: nobody) leads the shard: other lives of it have ended."""
        self.of(shard).reset()
        if node_id is not None:
            for life in [life for life in self._lives.get(shard, ()) if life.node_id != node_id]:
                self.incarnations.depose(life)

    def lives_changed(self) -> None:
        """A life has ended, or was carried on: sessions blocked in WAIT look again."""
        self.changed.set()
        self.changed = trio.Event()
        self._ended()

    def check_lives(self, writer: Writer) -> None:
        """Raises ``Unconfirmed`` when a life that took a write of the session is known to have ended."""
        for first, last in writer.writes.values():
            one, other = first.incarnation.present, last.incarnation.present
            if one.lost or other.lost or (one is not other and not (one.unsettled or other.unsettled)):
                raise Unconfirmed

    def question(
        self,
        writer: Writer,
        memory: Memory,
        asked: Asked,
        *,
        at_once: bool = False,
        shards: Sequence[int] | None = None,
    ) -> Question:
        """What a WAIT or WAITAOF whose turn has come asks for; its time runs from now on.

        ``at_once``: only for what there is, however many were asked for.  ``shards``: those alone, while what was
        written is still there; None is all.
        """
        return Question(self, writer, memory, asked, at_once, shards)

    async def wait(self, question: Question) -> bytes:
        """The raw reply to a WAIT or WAITAOF.

        Raises ``Unconfirmed`` when there is no number to give; the caller closes the session.
        """
        self.open += 1
        try:
            counts = await self._counts(question)
        except (MarkerRefused, Untrusted, ReplyError) as failure:
            return error(str(failure))
        except Unconfirmed:
            self.unconfirmed += 1
            raise
        finally:
            self.open -= 1
        return question.reply(least(counts))

    async def look_again(self, shards: Iterable[int]) -> None:
        """Have those shards' present counts seen; one that does not answer has had its time."""
        with trio.move_on_after(LAST_LOOK):
            async with trio.open_nursery() as nursery:
                for shard in shards:
                    nursery.start_soon(self.of(shard).look_again)

    async def _counts(self, question: Question) -> list[Counts]:
        """The question's answer, or ``Unconfirmed`` at once when a life ends meanwhile."""
        writer = question.writer
        self.check_lives(writer)
        asking = trio.CancelScope()
        ended = False

        async def watch() -> None:
            nonlocal ended
            while not ended:
                changed = self.changed
                try:
                    self.check_lives(writer)
                except Unconfirmed:
                    ended = True
                    asking.cancel()
                else:
                    await changed.wait()

        counts: list[Counts] = []
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            with asking:
                try:
                    counts = await question.ask()
                except (MarkerRefused, Untrusted, ReplyError, Unconfirmed) as caught:
                    failure = caught  # kept out of the nursery, which would wrap it in a group
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if ended:
            raise Unconfirmed
        return counts
