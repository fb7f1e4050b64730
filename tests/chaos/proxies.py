"""Two proxies of the storm's own in front of one cluster, and what is done with them and to them."""

from __future__ import annotations

import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from proxy.commands.common import CommandError
from proxy.commands.switchover import give_order
from tests.harness import ENVIRONMENT, READY, Up, until
from tests.system.load import tag
from tests.system.nodes import Shard
from tests.system.wire import Closed, Wire

SERVED_S = 1.0  # within which a proxy serves every shard once the nodes are whole
REACH_S = 0.1  # until a pause holds the clients of every proxy
EARLY_S = 0.05  # by which another proxy may end it earlier
AFTER_S = 1.0  # within which it is over everywhere, from its end on
STALL_S = 3.0  # for which a failover that nobody votes for, nor gives up, keeps a shard paused; without one, 0.6
ORPHAN_S = 2.0  # from the death of the proxy that set it


class Proxy:
    """One of them; it comes back on the same ports."""

    def __init__(self, folder: Path, number: int, seeds: list[str], secret: Path) -> None:
        self.name = f"proxy{number}"
        self._folder = folder
        self._settings: dict[str, Any] = {
            "cluster": {"seeds": seeds},
            "listen": {"port": 0},
            "admin": {"port": 0},
            "peers": {"secret_file": str(secret)},
        }
        self.process: subprocess.Popen[str]
        self.start()

    def start(self) -> None:
        config = self._folder / f"{self.name}.yaml"
        config.write_text(yaml.safe_dump(self._settings))
        with (self._folder / f"{self.name}.err").open("a") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "proxy", "proxy", "--config", str(config)],
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self.process.stdout is not None
        match = READY.match(self.process.stdout.readline())
        assert match, f"{self.name} does not start: see its log in {self._folder}"
        self.url, self.admin = match.groups()
        for section, url in (("listen", self.url), ("admin", self.admin)):
            self._settings[section]["port"] = int(url.rpartition(":")[2])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextmanager
def two_proxies(folder: Path, running: Up, secret: Path) -> Iterator[list[Proxy]]:
    """In front of the nodes of ``running``, whose own proxy knows the same secret."""
    shards = running.topology()["shards"]
    seeds = [node["address"] for row in shards for node in [row["primary"], *row["replicas"]]]
    with ExitStack() as stack:
        proxies = []
        for number in range(2):
            proxies.append(Proxy(folder, number, seeds, secret))
            stack.callback(lambda proxy: proxy.kill(), proxies[-1])
        yield proxies


def new_secret(folder: Path) -> Path:
    file = folder / "peers.secret"
    file.write_text(secrets.token_hex(32))
    return file


def serves(url: str, slots: Sequence[int]) -> bool:
    """Whether a write of each of these slots passes at this endpoint now."""
    with suppress(OSError, Closed), Wire.to(url) as wire:
        wire.sock.settimeout(SERVED_S)
        return all(wire.call("SET", f"served{tag(slot)}", 1) == b"+OK\r\n" for slot in slots)
    return False


class ProxyFaults:
    """What is done with proxies.  ``broke`` is told what should not have been."""

    def __init__(self, proxies: Sequence[Proxy], chance: random.Random, broke: Callable[[str, str], None]) -> None:
        self.proxies = proxies
        self.random = chance
        self.broke = broke
        self.called_off = 0
        """Switchovers that a proxy found it could not do, and undid."""
        self.kinds: dict[str, Callable[[Shard], None]] = {
            "proxy killed": lambda shard: self.kill(),
            "proxy hung for a moment": lambda shard: self.hang(),
            "pause of writes": lambda shard: self.pause("WRITE", shard),
            "pause of everything": lambda shard: self.pause("ALL", shard),
            "pause, and its proxy killed": self.orphan,
            "switchover by a proxy": self.switch_over,
            "switchover, and its proxy killed": self.leave_switchover,
        }

    def kill(self) -> None:
        victim = self.random.choice(self.proxies)
        victim.kill()
        time.sleep(self.random.uniform(0.2, 1.0))
        victim.start()

    def hang(self) -> None:
        with self.random.choice(self.proxies).stopped():
            time.sleep(self.random.uniform(0.3, 1.5))

    # -- pauses ----------------------------------------------------------------------------------------
    def pause(self, mode: str, shard: Shard) -> None:
        """Nothing that it is about passes at either proxy before its end, and everything does soon after."""
        seconds = self.random.uniform(0.5, 1.2)
        until_then = time.monotonic() + seconds - EARLY_S
        self._set_pause(self.random.choice(self.proxies), mode, seconds)
        verbs = ["SET"] if mode == "WRITE" else ["SET", "GET"]
        held = [wire for proxy in self.proxies for wire in self._asked(proxy, shard, verbs)]
        for wire in list(held):
            if _answered(wire, until_then):
                held.remove(wire)
                if (left := until_then - time.monotonic()) > 0:
                    self.broke("pause passed", f"{mode}, {left + EARLY_S:.3f} s before its end")
        self._over(held, until_then + AFTER_S)

    def orphan(self, shard: Shard) -> None:
        """The proxy that set it dies: it ends for the clients of the other soon."""
        setter, other = self.random.sample(self.proxies, 2)
        self._set_pause(setter, self.random.choice(["WRITE", "ALL"]), 30)
        wires = self._asked(other, shard, ["SET"])
        time.sleep(self.random.uniform(0.1, 0.5))
        setter.kill()
        try:
            self._over(wires, time.monotonic() + ORPHAN_S)
        finally:
            setter.start()

    def _set_pause(self, proxy: Proxy, mode: str, seconds: float) -> None:
        with Wire.to(proxy.url) as wire:
            assert wire.call("CLIENT", "PAUSE", round(seconds * 1000), mode) == b"+OK\r\n"
        time.sleep(REACH_S)

    def _asked(self, proxy: Proxy, shard: Shard, verbs: list[str]) -> list[Wire]:
        """Connections whose commands a pause holds."""
        wires = []
        for verb in verbs:
            wires.append(Wire.to(proxy.url))
            wires[-1].send(verb, f"paused:{shard.key}", *(["1"] if verb == "SET" else []))
        return wires

    def _over(self, held: list[Wire], deadline: float) -> None:
        for wire in held:
            if not _answered(wire, deadline):
                self.broke("pause did not end", f"no answer {time.monotonic() - deadline:.3f} s behind the time")
            wire.close()

    # -- switchovers -----------------------------------------------------------------------------------
    def switch_over(self, shard: Shard) -> None:
        told = list(self._order(self.random.choice(self.proxies), shard))
        self.called_off += not told or told[-1].get("result") != "done"

    def leave_switchover(self, shard: Shard) -> None:
        """The proxy dies in the middle of it, at some step."""
        proxy = self.random.choice(self.proxies)
        steps = self.random.randint(1, 6)
        for number, _ in enumerate(self._order(proxy, shard), 1):
            if number == steps:
                proxy.kill()
        if proxy.process.returncode is None:
            proxy.kill()
        left = time.monotonic()
        other = next(each for each in self.proxies if each is not proxy)
        until(lambda: serves(other.url, [shard.slot]), "the shard is served again")
        if (took := time.monotonic() - left) > STALL_S + AFTER_S:
            self.broke("switchover left behind", f"{took:.2f} s until {other.name} served the shard")
        proxy.start()

    def _order(self, proxy: Proxy, shard: Shard) -> Iterator[dict[str, Any]]:
        address = f"{shard.primary.host}:{shard.primary.port}"
        with suppress(CommandError):
            yield from give_order(proxy.admin, "/switchover", {"shard": address, "to": None, "max_stall": None}, None)


def _answered(wire: Wire, deadline: float) -> bool:
    """Whether a reply comes before that."""
    wire.sock.settimeout(max(0.001, deadline - time.monotonic()))
    try:
        return bool(wire.receive())
    except TimeoutError:
        return False
