"""What of one client was held back on one lane: it goes on together, in its order, or is told why not."""

from __future__ import annotations

from collections import Counter

from proxy.dataplane import Request


class Held:
    """A request whose reply was held back."""

    __slots__ = ("answered", "asked", "refusal", "request")

    def __init__(self, request: Request, asked: int | None = None, refusal: bytes | None = None) -> None:
        self.request = request
        self.asked = asked
        """The shard that an ASK names."""
        self.refusal = refusal
        """The reply, where it says "not now" or that something is missing, so that what came behind may have run."""
        self.answered = False
        """The reply was passed on after all."""


class Group:
    """What of one client was held back on one lane, in order."""

    __slots__ = ("awaited", "behind", "held", "mark", "slow")

    def __init__(self) -> None:
        self.held: list[Held] = []
        self.mark = 0
        """How many of them there were when the first refusal was met."""
        self.behind: list[tuple[int, int]] | None = None
        """(slot, command id) of what its client had sent behind that one."""
        self.slow = False
        """One of them met "not now": they are not to be sent again at once."""
        self.awaited = 0
        """How many of them miss something that is being brought."""

    @property
    def size(self) -> int:
        return sum(len(each.request.raw) for each in self.held)

    def overtaking(self) -> Counter[tuple[int, int]]:
        """What of that was carried out, though the first one was not."""
        later = (each.request for each in self.held[self.mark + 1 :] if not each.answered)
        return Counter(self.behind) - Counter((request.slot, request.command_id) for request in later)
