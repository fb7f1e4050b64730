"""Look-ups of host names: one that is not answered keeps nobody from the others, nor from what was found before."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing

from shard import names


class System:
    """The system's look-ups: a name blocks, or fails, or has an address."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.addresses: dict[str, str] = {}
        self.errors: dict[str, int] = {}
        self.blocking: set[str] = set()
        self.go_on = threading.Event()

    def getaddrinfo(self, host: Any, port: Any, *rest: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        self.asked[name] += 1
        if name in self.blocking:
            self.go_on.wait(30)
        if name in self.errors:
            raise socket.gaierror(self.errors[name], "no")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.addresses[name], port))]


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    system = System()
    monkeypatch.setattr(names.socket, "getaddrinfo", system.getaddrinfo)
    yield system
    system.go_on.set()


async def find(resolver: names.Names, name: str) -> str:
    return str((await resolver.getaddrinfo(name, 6379))[0][4][0])


async def test_those_who_ask_for_the_same_name_wait_together(system: System) -> None:
    system.addresses["node"] = "10.0.0.1"
    system.blocking.add("node")
    resolver = names.Names()
    found: list[str] = []

    async def ask() -> None:
        found.append(await find(resolver, "node"))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        system.go_on.set()
    assert found == ["10.0.0.1"] * 20
    assert system.asked["node"] == 1


async def test_names_that_are_gone_do_not_take_the_threads_of_others(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "ANEW", 0.0)
    gone = [f"gone-{number}" for number in range(20)]
    system.blocking.update(gone)
    system.errors.update(dict.fromkeys(gone, socket.EAI_AGAIN))
    system.addresses["node"] = "10.0.0.1"
    resolver = names.Names()
    for name in gone * 10:  # whoever asks gives up, the system does not
        with trio.move_on_after(0):
            await resolver.getaddrinfo(name, 6379)
    with trio.fail_after(10):
        assert await find(resolver, "node") == "10.0.0.1"
    assert max(system.asked.values()) <= names.AT_A_TIME


async def test_what_was_found_last_will_do_while_there_is_no_answer(system: System) -> None:
    system.addresses["node"] = "10.0.0.1"
    resolver = names.Names()
    assert await find(resolver, "node") == "10.0.0.1"
    system.errors["node"] = socket.EAI_AGAIN
    assert await find(resolver, "node") == "10.0.0.1"
    system.errors["node"] = socket.EAI_NONAME
    with pytest.raises(socket.gaierror):
        await find(resolver, "node")
    del system.errors["node"]
    system.blocking.add("node")
    assert await find(resolver, "node") == "10.0.0.1"
    system.addresses["node"] = "10.0.0.2"
    system.go_on.set()
    with trio.fail_after(10):
        while await find(resolver, "node") != "10.0.0.2":  # noqa: ASYNC110 -- threads set no trio.Event
            await trio.sleep(0.01)


async def test_what_can_be_no_name_is_told_so() -> None:
    with pytest.raises(socket.gaierror):
        await names.Names().getaddrinfo("a" * 300, 6379)
