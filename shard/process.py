"""Child processes that cannot outlive us.

Some facts about the parent-death signal (prctl(2), PR_SET_PDEATHSIG) the code below depends on:

* It is sent when the *thread* that forked the child ends, not only the process. A worker thread that is let go after a
  while would take the node with it: children are therefore forked from the main thread, synchronously.
* It is set in the child after the fork. A parent that died in between is noticed by its changed ``getppid``.
* It survives ``execve`` of an ordinary program (not of a set-user-ID one).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import trio

from shard.errors import ShardError

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.05


class Process:
    """A running or ended child. ``returncode`` is as in ``subprocess``: negative for a signal, None while it runs."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """Exit status if the child has ended, asked of the kernel at each look."""
        return self._popen.poll()

    @property
    def alive(self) -> bool:
        """True while the child runs (a stopped one, SIGSTOP, runs too)."""
        return self.returncode is None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; harmless when the child has ended."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, without waiting for its effect."""
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        """Wait for the end of the child and return its exit status. May be cancelled and called by several tasks."""
        while (status := self.returncode) is None:
            await _wait_for_end(self.pid)
        await trio.lowlevel.checkpoint()
        return status

    async def stop(self, grace: float) -> int:
        """SIGTERM, ``grace`` seconds to end in order, then SIGKILL. Returns the exit status."""
        self.send_signal(signal.SIGTERM)
        # A stopped process takes no SIGTERM until it is continued.
        self.send_signal(signal.SIGCONT)
        with trio.move_on_after(grace):
            await self.wait()
        if self.alive:
            self.send_signal(signal.SIGKILL)
        # SIGKILL is certain and quick: waiting for its effect leaves no half-dead child to a caller that is cancelled.
        with trio.CancelScope(shield=True):
            await self.wait()
        status = self.returncode
        assert status is not None
        return status


def spawn(
    argv: Sequence[str | os.PathLike[str]],
    *,
    cwd: str | os.PathLike[str] | None = None,
    log: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    own_session: bool = True,
    pass_fds: Sequence[int] = (),
) -> Process:
    """Start a program that is killed when this process ends, however that happens.

    ``log``: file that standard output and error are appended to (standard input is empty then); None: all three are
    ours.
    ``own_session``: away from the terminal, so that Ctrl-C reaches us alone and we stop it in our order.
    ``pass_fds``: descriptors it has, too, under the same numbers.
    Must be called in the main thread (``RuntimeError`` otherwise). Raises ``ShardError`` when it cannot be started.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("spawn() outside the main thread: the child would die with this thread")
    try:
        output = None if log is None else _open_log(Path(log))
    except OSError as error:
        raise ShardError(f"cannot write the log {log} ({error.strerror}): choose a folder you may write to") from None
    try:
        return Process(_popen(argv, cwd, output, env, own_session, pass_fds))
    except OSError as error:
        raise ShardError(f"cannot start {argv[0]} ({error.strerror}): check the program and its folder {cwd}") from None
    finally:
        if output is not None:
            output.close()


def _popen(
    argv: Sequence[str | os.PathLike[str]],
    cwd: str | os.PathLike[str] | None,
    output: IO[bytes] | None,
    env: Mapping[str, str] | None,
    own_session: bool,
    pass_fds: Sequence[int],
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        cwd=cwd,
        stdin=None if output is None else subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=env,
        start_new_session=own_session,
        pass_fds=pass_fds,
        preexec_fn=_die_with_parent(),
    )


def _open_log(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab", buffering=0)


def _die_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    # Looked up before the fork: between fork and exec as little as possible may run.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return in_child


async def _wait_for_end(pid: int) -> None:
    # The child is reaped by us alone, so the pid cannot have been given to another process before this line.
    try:
        descriptor = os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, an old kernel, or a sandbox that forbids it
        await trio.sleep(_POLL_SECONDS)
        return
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)
