"""Cutting a process off from the network by iptables, for ``ackgate drill --partition``.

What lives here: which packets are a process's (its sockets, as ``/proc`` shows them), and a chain of our own in the
packet filter that drops them. Who sees to it that the chain goes away again: ``proxy.commands.breaking``.

iptables knows packets, not processes. Those of a node are known by its ports: what goes to or comes from a port that it
listens on, and what goes to or comes from the port that each connection of its own left by. A connection that it makes
later leaves by a port that nobody can foretell; so whatever first packet (SYN) goes from its address to where it had
connections before is dropped as well. On a machine where several nodes share an address that keeps the others from
making new connections there, too; those that they have go on, and a healthy cluster makes no others.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from proxy.commands.common import CommandError

_LISTENING = "0A"  # include/net/tcp_states.h of Linux
_TOOLS = {4: "iptables", 6: "ip6tables"}
_LOCK_S = "5"  # for which iptables waits for another that is at work


class Socket(NamedTuple):
    """One TCP socket of a process. ``remote`` is None for one that listens, ``family`` 4 or 6."""

    family: int
    address: str
    port: int
    remote: tuple[str, int] | None


class Rule(NamedTuple):
    """What iptables (``family`` 4) or ip6tables (6) is to drop: the words that say which packets."""

    family: int
    words: tuple[str, ...]


def sockets_of(pid: int) -> list[Socket]:
    """The TCP sockets that a process has now. Raises ``CommandError`` when it is gone, or not ours to look at."""
    try:
        links = [_link(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
        tables = {family: Path(f"/proc/{pid}/net/{name}") for family, name in ((4, "tcp"), (6, "tcp6"))}
        lines = [(family, line) for family, path in tables.items() if path.exists() for line in _lines(path)]
    except OSError as error:
        raise CommandError(f"cannot see the connections of process {pid}: {error.strerror}; is it running?") from None
    own = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    return [_socket(family, line) for family, line in lines if line[9] in own]


def everything_of(sockets: Iterable[Socket]) -> list[Rule]:
    """What drops all packets of a process with these sockets, in both directions."""
    sockets = list(sockets)
    ports = {(each.family, each.port) for each in sockets if each.remote is None}
    ports |= {(4, each.port) for each in sockets if each.remote is None and each.address == "::"}  # it may take both
    made = [each for each in sockets if each.remote is not None and (each.family, each.port) not in ports]
    rules = [rule for family, port in sorted(ports) for rule in of_port(family, port)]
    for each in made:
        rules += of_connection(each)
    return list(dict.fromkeys(rules + [to_where_it_was(each) for each in made]))


def of_port(family: int, port: int) -> list[Rule]:
    """A port of this machine, from outside and from itself."""
    local = ("-m", "addrtype")
    return [
        Rule(family, (*local, "--dst-type", "LOCAL", "--dport", str(port))),
        Rule(family, (*local, "--src-type", "LOCAL", "--sport", str(port))),
    ]


def of_connection(made: Socket) -> list[Rule]:
    """One connection that its process made."""
    assert made.remote is not None
    address, port = made.remote
    there, here = ("--sport", str(made.port)), ("--dport", str(made.port))
    return [
        Rule(made.family, ("-s", made.address, *there, "-d", address, "--dport", str(port))),
        Rule(made.family, ("-s", address, "--sport", str(port), "-d", made.address, *here)),
    ]


def to_where_it_was(made: Socket) -> Rule:
    """A new connection in place of this one."""
    assert made.remote is not None
    address, port = made.remote
    return Rule(made.family, ("--syn", "-s", made.address, "-d", address, "--dport", str(port)))


class Chain:
    """Rules of our own in the packet filter of the network that process ``pid`` is in, which drop what they match.

    ``comment`` stands in each of them. Nothing is there before the first ``drop``. Raises ``CommandError`` where the
    packet filter cannot be had.
    """

    def __init__(self, pid: int, comment: str) -> None:
        self._name = f"ACKGATE-{os.getpid()}"
        self._comment = comment
        self._rules: list[Rule] = []
        self._families: set[int] = set()
        check_tools()
        self.network = _other_network(pid)
        """The descriptor of that network; None: it is our own."""

    def drop(self, rules: Iterable[Rule]) -> None:
        """Drop this, too."""
        new = [rule for rule in dict.fromkeys(rules) if rule not in self._rules]
        for family in sorted({rule.family for rule in new}):
            if family not in self._families:
                self._run(family, "-N", self._name)
        for rule in new:
            words = ("-p", "tcp", *rule.words, "-m", "comment", "--comment", self._comment, "-j", "DROP")
            self._run(rule.family, "-A", self._name, *words)
        self._rules += new
        for family in sorted({rule.family for rule in new} - self._families):
            for hook in ("INPUT", "OUTPUT"):
                self._run(family, "-I", hook, "-j", self._name)
            self._families.add(family)

    def removal(self) -> list[list[str]]:
        """The commands that leave nothing of it, in order; some fail where that much was not there."""
        commands = []
        for family, tool in _TOOLS.items():
            if shutil.which(tool) is None:
                continue
            for words in (("-D", "INPUT", "-j"), ("-D", "OUTPUT", "-j"), ("-F",), ("-X",)):
                commands.append(self._command(family, *words, self._name))
        return commands

    def _command(self, family: int, *words: str) -> list[str]:
        inside = [] if self.network is None else ["nsenter", f"--net=/proc/self/fd/{self.network}"]
        return [*inside, _TOOLS[family], "-w", _LOCK_S, *words]

    def _run(self, family: int, *words: str) -> None:
        handed = () if self.network is None else (self.network,)
        command = self._command(family, *words)
        try:
            done = subprocess.run(command, capture_output=True, text=True, pass_fds=handed, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise CommandError(f"{command[0]} cannot be run: {error.strerror}; install it, or take --stop") from None
        if done.returncode:
            reason = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
            raise CommandError(f"{_TOOLS[family]} refuses: {reason}; take --stop where packets cannot be dropped")

    def close(self) -> None:
        """Give the descriptor back. The rules are not touched."""
        if self.network is not None:
            os.close(self.network)
            self.network = None


def check_tools() -> None:
    """Raises ``CommandError`` where no rule can be made."""
    if os.geteuid() != 0:
        raise CommandError("a partition is made with iptables, which takes root; run the drill as root, or take --stop")
    if shutil.which(_TOOLS[4]) is None:
        raise CommandError(
            "a partition is made with iptables, which is not installed; install it (on Debian: apt install iptables), "
            "or take --stop"
        )


def _other_network(pid: int) -> int | None:
    """The network namespace of a process in a container, say, as a descriptor; None where it is ours."""
    with suppress(OSError):
        other = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        if not os.path.samestat(os.fstat(other), os.stat("/proc/self/ns/net")):
            return other
        os.close(other)
    return None


def _link(path: str) -> str:
    """What a descriptor is; nothing when it has been closed since."""
    with suppress(FileNotFoundError):
        return os.readlink(path)
    return ""


def _lines(path: Path) -> list[list[str]]:
    """The rows of ``/proc/PID/net/tcp``: 1 local address, 2 remote address, 3 state, 9 inode, as ``proc(5)`` says."""
    return [line.split() for line in path.read_text().splitlines()[1:]]


def _socket(family: int, row: list[str]) -> Socket:
    family_of, address, port = _address(family, row[1])
    if row[3] == _LISTENING:
        return Socket(family, address, port, None)
    return Socket(family_of, address, port, _address(family, row[2])[1:])


def _address(family: int, text: str) -> tuple[int, str, int]:
    """``0100007F:1F90`` is 127.0.0.1:8080: words of four bytes in the machine's own order. Family, address, port.

    An IPv4 address on a socket of IPv6 is told as what it is on the wire.
    """
    digits, _, port = text.partition(":")
    words = struct.pack(f"={len(digits) // 8}I", *(int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)))
    if family == 6 and words.startswith(b"\0" * 10 + b"\xff\xff"):
        return 4, socket.inet_ntop(socket.AF_INET, words[12:]), int(port, 16)
    return family, socket.inet_ntop(socket.AF_INET if family == 4 else socket.AF_INET6, words), int(port, 16)
