"""What a drill does to a node, and how that is undone, whatever becomes of the drill.

What lives here: killing, halting and cutting off one process. What is not over by itself is undone by a shell that
waits for the end of its input, which comes when the block is left, and when any signal ends the drill, SIGKILL too.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

import trio

from proxy.commands.common import CommandError
from proxy.commands.packetfilter import Chain, everything_of, sockets_of

How = Literal["kill", "stop", "partition"]

_LOOK_S = 0.1  # between two looks for connections that a node which is cut off has begun
_MEND_S = 30.0


class Broken:
    """A node as it was broken."""

    def __init__(self, pid: int, chain: Chain | None = None) -> None:
        self._pid = pid
        self._chain = chain

    async def keep(self) -> None:
        """See to it that it stays broken, until cancelled."""
        while self._chain is not None:
            self._chain.drop(everything_of(sockets_of(self._pid)))
            await trio.sleep(_LOOK_S)
        await trio.sleep_forever()


def check_process(pid: int, address: str) -> None:
    """A process id that another machine, or another container, gave is not to be taken for ours."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        words = b""
    if not any(name in words for name in (b"valkey", b"redis")):
        raise CommandError(f"process {pid} of this machine is not the node {address}; run the drill where that runs")


@contextmanager
def broken(pid: int, address: str, how: How) -> Iterator[Broken]:
    """The node is dead, or hangs or is cut off until the end of the block. Raises ``CommandError``."""
    if how == "partition":
        with closing(Chain(pid, f"ackgate drill: {address} is cut off while process {os.getpid()} runs")) as chain:
            inherited = () if chain.network is None else (chain.network,)
            with _undone_by(chain.removal(), inherited):
                chain.drop(everything_of(sockets_of(pid)))
                yield Broken(pid, chain)
    elif how == "stop":
        with _undone_by([["kill", "-CONT", str(pid)]]):
            _signal(pid, signal.SIGSTOP)
            yield Broken(pid)
    else:
        _signal(pid, signal.SIGKILL)
        yield Broken(pid)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError as error:
        raise CommandError(f"cannot signal process {pid}: {error.strerror}; run the drill as its user") from None


@contextmanager
def _undone_by(commands: Sequence[Sequence[str]], inherited: Sequence[int] = ()) -> Iterator[None]:
    """Run the commands at the end of the block, or of this process."""
    script = "trap '' HUP INT TERM; cat >/dev/null; " + "; ".join(map(shlex.join, commands))
    shell = subprocess.Popen(
        ["sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=inherited,
    )
    try:
        yield
    finally:
        assert shell.stdin is not None
        shell.stdin.close()
        shell.wait(_MEND_S)
