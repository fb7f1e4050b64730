"""A message is taken once, in time, and from who has the secret."""

from __future__ import annotations

import pytest

from proxy.peers.messages import LARGEST, WINDOW, Message, NotAuthentic, OutOfTime, Reader, derive, seal

KEY = derive("secret")
NOW = 1_000_000.0


def message(number: int = 1, at: float = NOW, sender: str = "peer") -> Message:
    return Message(sender, at, number, {"pause": {"mode": 1}})


def reader() -> Reader:
    return Reader(KEY, "me")


def test_what_is_sealed_is_read() -> None:
    assert reader().open(seal(message(), KEY), NOW) == message()


@pytest.mark.parametrize("at", range(0, 150, 7))
def test_no_byte_of_it_may_be_another(at: int) -> None:
    data = bytearray(seal(message(), KEY))
    data[at % len(data)] ^= 1
    with pytest.raises(NotAuthentic):
        reader().open(bytes(data), NOW)


@pytest.mark.parametrize("data", [b"", b" ", b"0" * 64, b"0" * 64 + b" ", seal(message(), derive("other"))])
def test_what_is_not_sealed_with_the_secret_is_nothing(data: bytes) -> None:
    with pytest.raises(NotAuthentic):
        reader().open(data, NOW)


def test_what_is_too_large_is_nothing() -> None:
    with pytest.raises(NotAuthentic):
        reader().open(seal(Message("peer", NOW, 1, {"pause": "x" * LARGEST}), KEY), NOW)


@pytest.mark.parametrize("off", [-WINDOW - 1, WINDOW + 1, float("inf")])
def test_what_is_not_of_our_time_is_not_taken(off: float) -> None:
    if off == float("inf"):
        data = seal(message(), KEY)
        with pytest.raises(OutOfTime):
            reader().open(data, off)
        return
    with pytest.raises(OutOfTime):
        reader().open(seal(message(at=NOW + off), KEY), NOW)


def test_each_is_taken_once_and_none_behind_a_later_one() -> None:
    taken = reader()
    first, second = seal(message(1), KEY), seal(message(2), KEY)
    assert taken.open(second, NOW) == message(2)
    assert taken.open(second, NOW) is None
    assert taken.open(first, NOW) is None
    assert taken.open(seal(message(1, sender="other"), KEY), NOW) == message(1, sender="other")


def test_our_own_are_for_others() -> None:
    assert reader().open(seal(message(sender="me"), KEY), NOW) is None


def test_many_senders_do_not_grow_for_ever_and_nothing_old_is_taken_again() -> None:
    taken = reader()
    for at in range(3000):
        now = NOW + at
        assert taken.open(seal(message(at=now, sender=f"peer{at}"), KEY), now) is not None
    assert taken.remembered <= 1100
    with pytest.raises(OutOfTime):
        taken.open(seal(message(at=NOW, sender="peer0"), KEY), NOW + 3000)
