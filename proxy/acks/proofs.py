"""What has to be read behind WAITAOF's counts, once for all who count on the same shards.

Kinds are apart, so that a shard which does not answer holds up those alone who ask for it.  Those who come while a
proof of their kind is under way share the next: what it reads was sent behind their counts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

import trio

from proxy.acks.question import GRACE, PROOF
from proxy.acks.wait import Acks
from proxy.acks.waiters import Run, Verdict

if TYPE_CHECKING:
    from proxy.acks.cohorts import Member

Kind = tuple[bool, frozenset[int]]
"""Whether fsyncs were counted, and where."""


class Proofs:
    """``conclude(member, verdicts)`` is called for each; who does not answer in time is left out of the verdicts.

    Within ``together`` many answers are sent in one go.
    """

    def __init__(
        self,
        acks: Acks,
        conclude: Callable[[Member, dict[int, Verdict]], None],
        together: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.acks = acks
        self._conclude = conclude
        self._together = together
        self._next: dict[Kind, list[Member]] = {}
        """Who is next, of each kind that a proof is under way of."""

    def add(self, shards: frozenset[int], member: Member) -> None:
        """Prove what was counted on those shards."""
        kind = member.question.asked.fsync, shards
        members = self._next.get(kind)
        if members is not None:
            members.append(member)
            return
        self._next[kind] = [member]
        self.acks.plane.at_end(partial(self._begin, kind))  # with all who come in this turn

    def _begin(self, kind: Kind) -> None:
        members = self._next[kind]
        if not members:
            del self._next[kind]
            return
        self._next[kind] = []
        _Proof(self, kind, members).begin()

    def ended(self, kind: Kind, members: list[Member], verdicts: dict[int, Verdict]) -> None:
        """Answer them, and begin for those who came meanwhile."""
        with self._together():
            for member in members:
                if not member.over:  # a defect that shows with one costs the others nothing
                    self.acks.plane.tell(None, self._conclude, member, verdicts)
        self.acks.plane.at_end(partial(self._begin, kind))


class _Proof:
    """One under way."""

    __slots__ = ("_kind", "_members", "_over", "_proofs", "_runs", "_unheard")

    def __init__(self, proofs: Proofs, kind: Kind, members: list[Member]) -> None:
        self._proofs = proofs
        self._kind = kind
        self._members = members
        self._runs: dict[int, Run[Verdict]] = {}
        self._unheard = len(kind[1])
        self._over = False

    def begin(self) -> None:
        acks, (fsync, shards) = self._proofs.acks, self._kind
        if not shards:
            self._end()
            return
        now = trio.current_time()
        deadline = min(member.question.deadline for member in self._members)
        acks.pace.rest(self, min(now + PROOF, max(now, deadline) + GRACE), self._end)
        self._runs = {shard: acks.of(shard).next_verdict(fsync) for shard in shards}
        for run in self._runs.values():
            run.then(self._heard)

    def _heard(self) -> None:
        self._unheard -= 1
        if not self._unheard:
            self._end()

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        self._proofs.acks.pace.forget(self)
        verdicts = {shard: run.result for shard, run in self._runs.items() if run.result is not None}
        self._proofs.ended(self._kind, self._members, verdicts)
