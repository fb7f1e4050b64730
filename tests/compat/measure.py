"""Every command of the engine called direct and through the proxy: what is the same, and which nodes ran it.

Nothing here knows how the proxy routes.  That two replies are the same is seen by comparing them byte by byte, after
what is declared in ``NORMALISED``; where a command ran is seen in the nodes' own ``INFO commandstats``.
"""

from __future__ import annotations

import re
import socket
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import hiredis

from proxy.codec.reply import OK, bulk_value, elements, is_error
from proxy.routing import Command, CommandTable
from tests.compat.calls import ALONE, CALLS, TOGETHER
from tests.harness import Up, until, up
from tests.system.beside import plain_server, whole
from tests.system.wire import Closed, Wire, request

PATIENCE_S = 10.0
"""For one reply."""
REPEATS = 8
"""Of a call that the proxy may make of its own accord: only what is seen as often is taken for the client's."""
MEASURED = 4
"""Calls of each command of which it is seen where they ran."""
CLOSED, SILENT = b"(closed)", b"(no reply)"

Words = Sequence[bytes]


# -- what may differ ---------------------------------------------------------------------------------------------------


def form(frame: bytes) -> bytes:
    """Its type, and how many elements it has."""
    return frame[:1] + (b"%d" % len(elements(frame)) if frame[:1] in b"*~%>" else b"")


def fields(frame: bytes) -> bytes:
    """Of ``name=value`` the names."""
    return frame[:1] + re.sub(rb"=\S*", b"=", bulk_value(frame) or b"")


def kind(frame: bytes) -> bytes:
    """Its type alone."""
    return frame[:1]


def unordered(frame: bytes) -> bytes:
    """The elements of each array sorted."""
    if frame[:1] not in b"*~":
        return frame
    return frame.partition(b"\r\n")[0] + b"\r\n" + b"".join(sorted(unordered(each) for each in elements(frame)))


Normaliser = Callable[[bytes], bytes]

NORMALISED: dict[str, tuple[Normaliser, str]] = {
    "time": (form, "another time for each call"),
    "lastsave": (form, "another time for each server"),
    "srandmember": (form, "drawn by chance"),
    "randomkey": (form, "drawn by chance"),
    "acl|genpass": (form, "drawn by chance"),
    "acl|log": (form, "times and addresses"),
    "keys": (unordered, "in any order"),
    "command": (unordered, "in any order"),
    "command|list": (unordered, "in any order"),
    "command|info": (unordered, "in any order"),
    "command|docs": (unordered, "in any order"),
    "acl|cat": (unordered, "in any order"),
    "acl|users": (unordered, "in any order"),
    "acl|list": (unordered, "in any order"),
    "sunion": (unordered, "in any order"),
    "config|get": (unordered, "in any order"),
    "function|list": (unordered, "in any order"),
    "client|id": (form, "an id of its own"),
    "client|info": (fields, "ids, addresses and times: the names of the fields are compared"),
    "client|list": (fields, "ids, addresses and times: the names of the fields are compared"),
    "hello": (form, "an id of its own"),
    "memory|usage": (form, "bytes of a server's own layout"),
    "slowlog|get": (form, "times and durations"),
    "commandlog|get": (form, "times and durations"),
    "slowlog|len": (form, "as many as were slow"),
    "object|idletime": (form, "seconds"),
    "object|freq": (form, "grows by chance"),
    "hpttl": (form, "milliseconds"),
    "pttl": (form, "milliseconds"),
    "xinfo|consumers": (form, "milliseconds"),
    "wait": (form, "as many replicas as there are"),
    "waitaof": (form, "as many replicas as there are"),
    "latency|graph": (kind, "durations"),
    "latency|history": (kind, "durations"),
    "latency|latest": (kind, "durations"),
    "latency|reset": (form, "as many events as there were"),
    "latency|histogram": (kind, "durations"),
    "role": (kind, "offsets and replicas"),
    "info": (kind, "figures"),
    "memory|stats": (kind, "figures"),
    "memory|malloc-stats": (kind, "figures"),
    "memory|doctor": (kind, "figures"),
    "latency|doctor": (kind, "figures"),
}
"""Command -> what is compared of its replies, and why not every byte.  Errors are always compared whole."""

OFTEN = ("acl|", "client|", "cluster|", "command", "config|", "hello", "info", "ping", "role", "select", "echo", "time")
"""What the proxy and the nodes say to each other all the time, by the beginning of the name."""
CANNOT_SUCCEED = (
    *("cluster|", "asking", "readonly", "readwrite", "clusterscan", "debug", "failover", "shutdown", "module|"),
    *("acl|load", "acl|save", "config|rewrite", "script|kill", "function|kill", "script|debug", "migrate"),
)
"""A plain server itself answers these with errors, or nothing good would come of them."""
MANY_SLOTS = (
    *("RENAME a b", "RENAMENX a b", "COPY a b", "SINTER a b", "SUNION a b", "SDIFF a b", "SINTERSTORE a b c"),
    *("SUNIONSTORE a b c", "SDIFFSTORE a b c", "SMOVE a b m", "SINTERCARD 2 a b", "LMOVE a b LEFT LEFT"),
    *("RPOPLPUSH a b", "LMPOP 2 a b LEFT", "BLPOP a b 0.01", "BRPOP a b 0.01", "BLMOVE a b LEFT LEFT 0.01"),
    *("BRPOPLPUSH a b 0.01", "BLMPOP 0.01 2 a b LEFT", "BZPOPMIN a b 0.01", "BZPOPMAX a b 0.01"),
    *("BZMPOP 0.01 2 a b MIN", "ZUNION 2 a b", "ZINTER 2 a b", "ZDIFF 2 a b", "ZINTERCARD 2 a b"),
    *("ZUNIONSTORE a 2 b c", "ZINTERSTORE a 2 b c", "ZDIFFSTORE a 2 b c", "ZMPOP 2 a b MIN", "ZRANGESTORE a b 0 1"),
    *("PFCOUNT a b", "PFMERGE a b", "BITOP AND a b c", "LCS a b", "XREAD STREAMS a b 0 0", "WATCH a b"),
    *("XREADGROUP GROUP g c STREAMS a b > >", "GEOSEARCHSTORE a b FROMLONLAT 1 1 BYRADIUS 1 m"),
    *("GEORADIUS a 1 1 1 m STORE b", "GEORADIUSBYMEMBER a m 1 m STORE b", "SORT a STORE b", "MSETNX a 1 b 2"),
    *("EVAL return(1) 2 a b", "EVAL_RO return(1) 2 a b", "FCALL f 2 a b", "FCALL_RO f 2 a b"),
    *(f"EVALSHA {'f' * 40} 2 a b", f"EVALSHA_RO {'f' * 40} 2 a b"),
)
"""Keys of several slots, compared with a cluster of one node."""


# -- what was seen -----------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What was seen of one command or subcommand."""

    name: str
    """``config get``"""
    group: str
    keyed: bool
    writes: bool
    policy: str
    """The engine's request policy, or empty."""
    calls: int = 0
    succeeded: int = 0
    """Calls that a plain server answered without an error."""
    different: list[str] = field(default_factory=list)
    """Calls whose replies are not the same, as typed."""
    errors: list[str] = field(default_factory=list)
    """What the proxy answered those, where it was an error."""
    normalised: str = ""
    """Why not every byte was compared, if so."""
    primaries: int = 0
    """The most primaries that one call ran on."""
    replicas: int = 0
    one_slot: bool = False
    """Keys of several slots are refused, as by a cluster of one node."""

    def took(self, call: Words, ours: list[bytes], plain: list[bytes], same: bool) -> None:
        self.calls += 1
        self.succeeded += not is_error(plain[0])
        text = typed(call)
        if same or text in self.different:
            return
        self.different.append(text)
        if is_error(ours[0]) and ours != plain:
            message = ours[0][1:].decode(errors="replace").strip()
            if message not in self.errors:
                self.errors.append(message)

    @property
    def refused(self) -> bool:
        """Whether nothing of it comes through."""
        return bool(self.errors) and all("proxy" in each for each in self.errors) and not self.primaries

    @property
    def status(self) -> str:
        if self.refused:
            return "refused"
        if self.different:
            return "differs"
        return "same in form" if self.normalised else "same"


def typed(call: Words) -> str:
    """A call as one would type it."""
    words = (word.decode("latin-1").encode("unicode_escape").decode() for word in call)
    return " ".join(f'"{word}"' if not word or " " in word else word for word in words)[:100]


# -- calling -----------------------------------------------------------------------------------------------------------


class Side:
    """One of the two that are told the same: the proxy, or a plain server."""

    def __init__(self, host: str, port: int, protocol: int) -> None:
        self.host, self.port, self.protocol = host, port, protocol
        self.names: dict[bytes, bytes] = {}
        self._wire: Wire | None = None
        self.in_multi = False
        self._turn = 0

    @property
    def wire(self) -> Wire:
        if self._wire is None:
            self._wire = Wire(self.host, self.port)
            self.in_multi = False
            self._wire.sock.settimeout(PATIENCE_S)
            if self.protocol == 3:
                self._wire.call("HELLO", 3)
            own = self._wire.call("CLIENT", "ID").strip()[1:]
            self.names[b"{id}"] = own
        return self._wire

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def call(self, words: Words) -> list[bytes]:
        """Everything that comes back, up to the answer to a PING behind it."""
        wire = self.wire
        parts = _parts([self.names.get(word, word) for word in words])
        frames: list[bytes] = []
        try:
            wire.send_raw(b"".join(request(*part) for part in parts))
            if self._transaction(parts[0][0].upper()):
                return [wire.receive()]
            self._turn += 1
            token = b"-- %d --" % self._turn
            wire.send("PING", token)
            while token not in (frame := wire.receive()):
                frames.append(frame)
        except (Closed, ConnectionError):
            frames.append(CLOSED)
        except TimeoutError:
            frames.append(SILENT)
        if not frames or frames[-1] in (CLOSED, SILENT):
            self.close()
        elif frames[-1][:1] == b"$":
            self.names[b"{last}"] = bulk_value(frames[-1]) or b""
        return frames or [SILENT]

    def _transaction(self, name: bytes) -> bool:
        """Whether the call is one of a transaction, in which a PING would be queued."""
        within = self.in_multi
        if name == b"MULTI":
            self.in_multi = True
        elif name in (b"EXEC", b"DISCARD", b"RESET"):
            self.in_multi = False
        return within or self.in_multi


def _parts(words: Words) -> list[Words]:
    if TOGETHER not in words:
        return [words]
    at = list(words).index(TOGETHER)
    return [words[:at], *_parts(words[at + 1 :])]


class Nodes:
    """The nodes behind the proxy, and how often each ran a command."""

    def __init__(self, running: Up) -> None:
        shards = whole(running)
        self.primaries = [_wire(shard["primary"]) for shard in shards]
        self.replicas = [_wire(node) for shard in shards for node in shard["replicas"]]

    def close(self) -> None:
        for wire in (*self.primaries, *self.replicas):
            wire.close()

    def counts(self, name: str) -> list[int]:
        wires = [*self.primaries, *self.replicas]
        for wire in wires:
            wire.send("INFO", "commandstats")
        return [_count(wire.receive(), name) for wire in wires]

    def ran(self, name: str, before: list[int], times: int) -> tuple[int, int]:
        """How many primaries and how many replicas ran it as often since ``before``."""
        own = name == "info"  # the question itself
        more = [after - was - own >= times for after, was in zip(self.counts(name), before, strict=True)]
        return sum(more[: len(self.primaries)]), sum(more[len(self.primaries) :])


def _wire(row: Mapping[str, Any]) -> Wire:
    host, _, port = row["address"].rpartition(":")
    return Wire(host, int(port))


def _count(frame: bytes, name: str) -> int:
    found = re.search(rb"cmdstat_%b:calls=(\d+),.*?rejected_calls=(\d+)" % re.escape(name.encode()), frame)
    return int(found[1]) + int(found[2]) if found else 0


# -- measuring ---------------------------------------------------------------------------------------------------------


class Measure:
    """One run over all calls, in both protocols."""

    def __init__(self, proxy: tuple[str, int], plain: int, cluster: int, nodes: Nodes) -> None:
        self.addresses = proxy, ("127.0.0.1", plain)
        self.cluster = cluster
        self.nodes = nodes
        with Wire("127.0.0.1", plain) as wire:
            self.table = CommandTable.from_reply(_values(wire.call("COMMAND")))
            groups = _groups(_values(wire.call("COMMAND", "DOCS")))
        self.seen = {command.name.decode(): _blank(command, groups) for command in self.table}
        self._measured: dict[str, int] = defaultdict(int)

    def run(self, progress: Callable[[str], None]) -> dict[str, Seen]:
        for protocol in (2, 3):
            for group, calls in CALLS.items():
                progress(f"RESP{protocol} {group}")
                self._group(calls, protocol)
        self._alone()
        self._many_slots()
        for name, seen in self.seen.items():
            seen.normalised = NORMALISED[name][1] if name in NORMALISED else ""
        return self.seen

    def _group(self, calls: Iterable[Words], protocol: int) -> None:
        ours, plain = (Side(*address, protocol) for address in self.addresses)
        try:
            for side in (ours, plain):
                for words in ((b"FLUSHALL",), (b"SCRIPT", b"FLUSH"), (b"FUNCTION", b"FLUSH")):
                    assert side.call(words) == [OK], words
            for words in calls:
                self._one(words, ours, plain)
        finally:
            ours.close()
            plain.close()

    def _one(self, words: Words, ours: Side, plain: Side) -> None:
        command = self.table.lookup(_parts(words)[0])
        expected = plain.call(words)
        if command is None:
            ours.call(words)
            return
        name = command.name.decode()
        worth = not is_error(expected[0]) or name.startswith(CANNOT_SUCCEED)
        if worth and self._measured[name] < MEASURED and expected != [CLOSED]:
            got = self._watched(name, words, ours)
        else:
            got = ours.call(words)
        self.seen[name].took(words, got, expected, agree(name, got, expected))

    def _watched(self, name: str, words: Words, ours: Side) -> list[bytes]:
        self._measured[name] += 1
        once = ours.in_multi or name in ("client|kill", "config|resetstat")  # the latter counts from 0 again
        times = REPEATS if name.startswith(OFTEN) and not once else 1
        assert ours.wire  # opened now: what that takes is not to be counted
        before = self.nodes.counts(name)
        got = ours.call(words)
        for _ in range(times - 1):
            ours.call(words)
        primaries, replicas = self.nodes.ran(name, before, times)
        seen = self.seen[name]
        seen.primaries, seen.replicas = max(seen.primaries, primaries), max(seen.replicas, replicas)
        return got

    def _alone(self) -> None:
        for words in ALONE:
            name = self.table.lookup(words).name.decode()  # type: ignore[union-attr]
            with Wire(*self.addresses[0]) as wire:
                self.seen[name].took(words, [wire.call(*words)], [b"+a stream of data"], same=False)

    def _many_slots(self) -> None:
        for text in MANY_SLOTS:
            words = text.split()
            name = self.table.lookup([word.encode() for word in words]).name.decode()  # type: ignore[union-attr]
            replies = []
            for address in (self.addresses[0], ("127.0.0.1", self.cluster)):
                with Wire(*address) as wire:
                    replies.append(wire.call(*words))
            seen = self.seen[name]
            seen.one_slot = replies[0].startswith(b"-CROSSSLOT")
            seen.took([text.encode()], replies[:1], replies[1:], replies[0] == replies[1])


def agree(name: str, ours: list[bytes], plain: list[bytes]) -> bool:
    """Whether two replies say the same, after what is declared."""
    if ours == plain:
        return True
    if name not in NORMALISED or len(ours) != len(plain) or any(map(is_error, (*ours, *plain))):
        return False
    normal = NORMALISED[name][0]
    return [normal(frame) for frame in ours] == [normal(frame) for frame in plain]


def _values(frame: bytes) -> Any:
    reader = hiredis.Reader()
    reader.feed(frame)
    return reader.gets()


def _groups(docs: list[Any]) -> dict[str, str]:
    pairs = zip(docs[::2], docs[1::2], strict=True)
    rows = {name.decode(): dict(zip(row[::2], row[1::2], strict=True)) for name, row in pairs}
    return {name: row[b"group"].decode() for name, row in rows.items()}


def _blank(command: Command, groups: Mapping[str, str]) -> Seen:
    name = command.name.decode()
    group = groups[name.partition("|")[0]]
    policy = (command.request_policy or b"").decode()
    return Seen(name.replace("|", " "), group, command.is_keyed, command.is_write, policy)


# -- servers -----------------------------------------------------------------------------------------------------------


@contextmanager
def one_node_cluster(folder: Path) -> Iterator[int]:
    """A cluster whose one node has all slots: what a client meets that is not for clusters, without a proxy."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        bus = str(probe.getsockname()[1])
    options = {"cluster_enabled": "yes", "cluster_databases": "16", "cluster_port": bus, "appendonly": "yes"}
    with plain_server(folder, **options) as port, Wire("127.0.0.1", port) as connection:
        assert connection.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383) == OK
        until(lambda: b"cluster_state:ok" in connection.call("CLUSTER", "INFO"), "the cluster of one node is whole")
        yield port


def measure(progress: Callable[[str], None] = lambda text: None) -> dict[str, Seen]:
    """Start what it takes, and call everything.  Name as the engine has it -> what was seen."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="ackgate-compat-")))
        progress("starting servers")
        plain = stack.enter_context(plain_server(folder / "plain", appendonly="yes"))
        cluster = stack.enter_context(one_node_cluster(folder / "cluster"))
        running = stack.enter_context(up(folder, "--port", "0", "--admin-port", "0", name="proxy"))
        nodes = Nodes(running)
        stack.callback(nodes.close)
        parts = urlsplit(running.redis_url)
        assert parts.hostname is not None and parts.port is not None
        return Measure((parts.hostname, parts.port), plain, cluster, nodes).run(progress)
