"""Children that cannot outlive us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from shard.errors import ShardError
from shard.process import spawn

ROOT = Path(__file__).resolve().parents[2]
FOREVER = ["/bin/sleep", "1000"]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until_gone(pid: int) -> None:
    give_up = time.monotonic() + 10
    while not gone(pid):
        assert time.monotonic() < give_up, f"process {pid} survived"
        time.sleep(0.01)


def test_a_child_dies_with_a_parent_that_is_killed() -> None:
    code = (
        f"import sys, trio; sys.path.insert(0, {str(ROOT)!r}); from shard.process import spawn\n"
        f"async def main():\n"
        f"    child = spawn({FOREVER!r}, log='/dev/null')\n"
        # A worker thread that comes and goes must not take the child with it.
        f"    await trio.to_thread.run_sync(lambda: None)\n"
        f"    print(child.pid, flush=True)\n"
        f"    await child.wait()\n"
        f"trio.run(main)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not gone(child)
        parent.kill()
    wait_until_gone(child)


async def test_it_is_in_a_session_of_its_own_unless_wanted_otherwise() -> None:
    for own in (True, False):
        child = spawn(FOREVER, log="/dev/null", own_session=own)
        assert (os.getsid(child.pid) == child.pid) is own
        await child.stop(grace=5)


async def test_stop_is_orderly_first_and_certain_in_the_end(tmp_path: Path) -> None:
    polite = spawn(["/bin/sh", "-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done"], log=tmp_path / "log")
    await _until_it_says(tmp_path / "log", "up")
    assert await polite.stop(grace=10) == 7
    deaf = spawn(["/bin/sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.01; done"], log=tmp_path / "log")
    await _until_it_says(tmp_path / "log", "deaf")
    assert await deaf.stop(grace=0.1) == -signal.SIGKILL
    assert not deaf.alive


async def _until_it_says(log: Path, word: str) -> None:
    with trio.fail_after(10):
        while word not in await trio.Path(log).read_text():  # noqa: ASYNC110 -- a file sets no trio.Event
            await trio.sleep(0.01)


async def test_a_stopped_child_is_stopped_in_order_too() -> None:
    child = spawn(FOREVER, log="/dev/null")
    child.send_signal(signal.SIGSTOP)
    assert await child.stop(grace=10) == -signal.SIGTERM


async def test_several_tasks_may_wait_for_the_same_end() -> None:
    child = spawn(["/bin/sh", "-c", "exit 3"], log="/dev/null")
    statuses: list[int] = []

    async def wait() -> None:
        statuses.append(await child.wait())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
    assert statuses == [3, 3, 3]


async def test_a_log_is_appended_to_and_private(tmp_path: Path) -> None:
    for word in ("one", "two"):
        await spawn(["/bin/sh", "-c", f"echo {word}"], log=tmp_path / "log").wait()
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


async def test_what_cannot_be_started_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"cannot start .*missing \(No such file"):
        spawn([tmp_path / "missing"], log=tmp_path / "log")
    with pytest.raises(ShardError, match="cannot write the log"):
        spawn(FOREVER, log=tmp_path / "no" / "log")


async def test_a_worker_thread_may_not_start_children() -> None:
    with pytest.raises(RuntimeError, match="main thread"):
        await trio.to_thread.run_sync(spawn, FOREVER)
