"""Clients that write while something is broken, and know what was confirmed to them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import redis

from tests.harness import until

AGAIN_S = 0.1  # between two attempts, as clients do
Connect = Callable[[], redis.Redis]


class Load:
    """Numbered writes, each confirmed by WAIT, of a few connections. One that breaks is made anew."""

    def __init__(self, connect: Connect, name: str, clients: int = 4) -> None:
        self.confirmed: dict[str, int] = {}
        """Keys and values of which WAIT said that a replica has them."""
        self.errors: list[str] = []
        self.clients = clients
        self.answered = 0
        """Writes that were, confirmed or not."""
        self._connect = connect
        self._name = name
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]

    def _run(self, number: int) -> None:
        written = 0
        while not self._ended.is_set():
            try:
                with self._connect() as client:
                    while not self._ended.is_set():
                        written += 1
                        self._write(client, f"{self._name}:{number}:{written}", written)
            except redis.RedisError as error:
                self.errors.append(str(error))
                time.sleep(AGAIN_S)

    def _write(self, client: redis.Redis, key: str, value: int) -> None:
        client.set(key, value)
        self.answered += 1
        if client.wait(1, 1000) == 1:
            self.confirmed[key] = value

    def goes_on(self, writes: int = 50) -> None:
        """Until that many more are confirmed."""
        so_far = len(self.confirmed)
        until(lambda: len(self.confirmed) >= so_far + writes, f"{writes} more confirmed writes; {self.errors[-3:]}")

    def is_served(self, writes: int = 20) -> None:
        """Until that many more are answered: where a shard has no replica, none is confirmed."""
        so_far = self.answered
        until(lambda: self.answered >= so_far + writes, f"{writes} more writes; {self.errors[-3:]}")

    @contextmanager
    def running(self) -> Iterator[Load]:
        for thread in self._threads:
            thread.start()
        try:
            self.goes_on()
            yield self
        finally:
            self._ended.set()
            for thread in self._threads:
                thread.join()

    def lost(self) -> list[str]:
        """Confirmed keys that are not there any more. They are deleted."""
        with self._connect() as client:
            keys = list(self.confirmed)
            values = client.mget(keys)
            missing = [key for key, value in zip(keys, values, strict=True) if value != str(self.confirmed[key])]
            with suppress(redis.RedisError):
                client.delete(*keys)
        return missing

