"""Write concern: replies to writes, kept back until the writes are acknowledged as the configuration asks.

The client knows nothing of it: its reply comes later, or an error in its place.  The data plane keeps the replies, one
``Hold`` for each lane and class; for a hold one question is put to its shard, like the WAIT of a session that wrote
just that.  So every rule of WAIT holds here, and every number rides on the same rounds.  While a question is under
way, what comes behind it is the next hold: so there are few questions, however many write.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import trio

from proxy.acks.arguments import Asked
from proxy.acks.cohorts import Done
from proxy.acks.crowd import Crowd
from proxy.acks.incarnation import Stamp
from proxy.acks.question import Counts, Memory
from proxy.acks.wait import Acks
from proxy.codec.reply import elements, error, integer_value, is_error
from proxy.dataplane import DataPlane, Hold
from proxy.observe.metrics import ConcernResult

Fsync = Literal["none", "local", "replica", "both"]
UNCONFIRMED = b"-UNCONFIRMED applied, but the primary that took it is no longer in charge: outcome unknown\r\n"
PATIENCE = 0.005  # seconds for which replies are gathered behind a question that is under way
DEPENDS = -1
"""Stands for a class that depends on the keys."""


@dataclass(frozen=True, slots=True)
class Concern:
    """What a write has to reach before its reply passes."""

    replicas: int = 0
    """Replicas that must have it; with ``fsync`` of ``replica`` or ``both``, on their disks (one at least)."""
    fsync: Fsync = "none"
    """Whose disk it must be on: the primary's own, the replicas', or both."""
    timeout: float = 1.0
    """Seconds from its reply on."""
    on_timeout: Literal["error", "ack"] = "error"

    @property
    def asks(self) -> bool:
        return bool(self.replicas) or self.fsync != "none"

    def questions(self) -> list[Asked]:
        """As WAIT and WAITAOF would ask for it."""
        if self.fsync == "none":
            return [Asked(0, self.replicas, self.timeout, fsync=False)]
        local = int(self.fsync != "replica")
        if self.fsync == "local":
            copies = [Asked(0, self.replicas, self.timeout, fsync=False)] if self.replicas else []
            return [Asked(local, 0, self.timeout, fsync=True), *copies]
        return [Asked(local, max(1, self.replicas), self.timeout, fsync=True)]

    def failure(self, why: str = "") -> bytes:
        """The error that takes the place of a reply whose write was not acknowledged in time."""
        within = f"within {round(self.timeout * 1000)} ms"
        if why:
            return error(f"UNCONFIRMED applied, not acknowledged: {why}")
        if self.fsync == "none":
            return error(f"UNCONFIRMED applied, not acknowledged by {self.replicas} replicas {within}")
        disks = [] if self.fsync == "replica" else ["the primary"]
        copies = max(1, self.replicas) if self.fsync != "local" else 0
        disks += [f"{copies} replicas"] if copies else []
        also = f" and acknowledged by {self.replicas} replicas" if self.fsync == "local" and self.replicas else ""
        return error(f"UNCONFIRMED applied, not fsynced by {' and '.join(disks)}{also} {within}")


@dataclass(frozen=True, slots=True)
class Rule:
    """Whose writes a concern is for; None: everybody's, any key's."""

    concern: Concern
    user: str | None = None
    prefix: bytes | None = None

    def meant_for(self, user: str) -> bool:
        return self.user is None or self.user == user


class _Wrote:
    """As a session that wrote what a hold keeps the replies of, and nothing else."""

    __slots__ = ("writes",)

    def __init__(self, hold: Hold) -> None:
        self.writes: dict[int, list[Stamp]] = {hold.shard: [hold.first, hold.last]}


class Concerns:
    """The rules, and the holds under way.

    A class is the number of a rule, from 1 on.  ``keys_of(raw)`` are the keys of a request;
    ``observe(result, replies)`` is told what became of a hold.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        acks: Acks,
        crowd: Crowd,
        plane: DataPlane,
        *,
        keys_of: Callable[[bytes], Sequence[bytes]],
        observe: Callable[[ConcernResult, int], None],
    ) -> None:
        self.rules = tuple(rules)
        self.open = 0
        """Questions under way."""
        self._acks = acks
        self._crowd = crowd
        self._keys_of = keys_of
        self._plane = plane
        self._busy: set[tuple[int, int]] = set()
        """(shard, class) of questions behind which replies are gathered."""
        self._kept = trio.Event()
        self._observe = observe
        self._questions = [rule.concern.questions() for rule in self.rules]

    # -- which class a write is of --------------------------------------------------------------------
    def of_user(self, user: str) -> int:
        """The class of everything a user writes; 0 for none, DEPENDS where the keys decide."""
        mine = [rule for rule in self.rules if rule.meant_for(user)]
        if not any(rule.concern.asks for rule in mine):
            return 0
        return DEPENDS if mine[0].prefix is not None else self._class_of(mine[0])

    def of_write(self, user: str, raw: bytes) -> int:
        """The class of one write of a user whose keys decide.

        The first matching rule of each key; of several keys the first rule that asks for anything.
        """
        mine = [rule for rule in self.rules if rule.meant_for(user)]
        keys: Sequence[bytes | None] = self._keys_of(raw) or [None]
        found = {self._first(mine, key) for key in keys} - {0}
        return min(found, default=0)

    def _first(self, rules: Sequence[Rule], key: bytes | None) -> int:
        for rule in rules:
            if rule.prefix is None or (key is not None and key.startswith(rule.prefix)):
                return self._class_of(rule)
        return 0

    def _class_of(self, rule: Rule) -> int:
        return self.rules.index(rule) + 1 if rule.concern.asks else 0

    # -- what becomes of what is held -----------------------------------------------------------------
    async def run(self) -> None:
        """See to it that no hold is kept open for longer than PATIENCE; for ever."""
        while True:
            await self._kept.wait()
            self._kept = trio.Event()
            while self._plane.holds:
                await trio.sleep(PATIENCE)
                self.sweep(patience=PATIENCE)

    def sweep(self, patience: float = math.inf) -> None:
        """Ask for the open holds, but for those behind a question of their kind; for these, too, after ``patience``."""
        oldest = time.monotonic() - patience
        for hold in list(self._plane.holds):
            kind = hold.shard, hold.concern
            if kind in self._busy and hold.born > oldest:
                self._kept.set()
                continue
            self._plane.take_hold(hold)
            if len(hold):
                self._busy.add(kind)
                _Held(self, hold, self._questions[hold.concern - 1])

    def ask(self, hold: Hold, asked: Asked, done: Done) -> None:
        question = self._acks.question(_Wrote(hold), Memory(), asked, shards=(hold.shard,))
        question.weight = len(hold)
        self.open += 1
        self._crowd.ask(question, done)

    def finish(self, hold: Hold, failure: bytes | None, result: ConcernResult) -> None:
        self._observe(result, len(hold))
        self._plane.release(hold, failure)
        self._busy.discard((hold.shard, hold.concern))
        if self._plane.holds:
            self.sweep()


class _Held:
    """One hold, until all its questions are answered or one says no."""

    __slots__ = ("_concern", "_concerns", "_hold", "_missed", "_missing")

    def __init__(self, concerns: Concerns, hold: Hold, questions: Sequence[Asked]) -> None:
        self._concerns = concerns
        self._hold: Hold | None = hold
        self._concern = concerns.rules[hold.concern - 1].concern
        self._missing = len(questions)
        self._missed = False
        for asked in questions:
            concerns.ask(hold, asked, partial(self._answered, asked))

    def _answered(self, asked: Asked, frame: bytes | None, counts: Counts | None) -> None:
        self._concerns.open -= 1
        self._missing -= 1
        if frame is None:
            self._finish(UNCONFIRMED, "unconfirmed")
        elif is_error(frame):
            self._miss(self._concern.failure(frame[1:].decode("utf-8", "replace").strip()), "refused")
        elif not _reached(asked, frame):
            self._miss(self._concern.failure(), "deadline")
        if not self._missing:
            self._finish(None, "passed" if self._missed else "reached")

    def _miss(self, failure: bytes, result: ConcernResult) -> None:
        self._missed = True  # a reply that may pass all the same waits for what else is asked for
        if self._concern.on_timeout == "error":
            self._finish(failure, result)

    def _finish(self, failure: bytes | None, result: ConcernResult) -> None:
        hold, self._hold = self._hold, None
        if hold is not None:
            self._concerns.finish(hold, failure, result)


def _reached(asked: Asked, frame: bytes) -> bool:
    if not asked.fsync:
        return integer_value(frame) >= asked.replicas
    local, replicas = (integer_value(each) for each in elements(frame))
    return local >= asked.local and replicas >= asked.replicas
