"""The README's tour, typed as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ENVIRONMENT, PATIENCE_S, ROOT, Up, up

README = (ROOT / "README.md").read_text()


def tour_blocks() -> list[str]:
    tour = README.partition("## A tour")[2].partition("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", tour, re.DOTALL)


def for_this_run(block: str, running: Up) -> str:
    """The block with this run's ports and Python in place of the defaults."""
    python = shlex.quote(sys.executable)
    port = running.redis_url.rpartition(":")[2]
    lines = [line for line in block.splitlines() if "pip install" not in line]
    text = "\n".join(lines).replace("6379", port)
    programs = {  # all at once: a path of this run may hold one of the names
        ".venv/bin/ackgate status": f"{python} -m proxy status --admin {running.admin_url}",
        ".venv/bin/python": python,
    }
    return re.sub("|".join(map(re.escape, programs)), lambda found: programs[found[0]], text)


def typed(block: str, running: Up) -> str:
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", for_this_run(block, running)],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_tour_is_true(tmp_path: Path) -> None:
    first, second, third = tour_blocks()
    with up(tmp_path, "--port", "0", "--admin-port", "0") as running:
        assert typed(first, running).split() == ["OK", "OK", "Ada", "Grace", "Edsger", "3", "OK", "1", "1", "1"]
        assert typed(second, running).splitlines() == ["['1', '999']", "1", "[1, 1]"]
        killed = running.topology()["shards"][0]["primary"]["address"]
        shown = typed(third, running)
        assert "Ada\nGrace\nEdsger\n" in shown
        after = shown.rpartition("Edsger\n")[2]
        (first_shard,) = [line for line in after.splitlines() if re.match(r"\s+1\s+0-", line)]
        assert killed not in first_shard
        assert "primary" in first_shard and "online" in first_shard
        assert running.stop() == 0


@pytest.mark.parametrize(
    "option", re.findall(r"(?<=\[)--[a-z-]+", README.partition("## The command")[2].partition("## ")[0])
)
def test_the_options_it_names_exist(option: str) -> None:
    from proxy.commands.drill import drill
    from proxy.commands.status import status
    from proxy.commands.switchover import switchover
    from proxy.commands.trace import trace
    from proxy.commands.up import up as command

    commands = (command, status, switchover, drill, trace)
    known = {name for each in commands for parameter in each.params for name in parameter.opts}
    assert option in known


def test_the_files_it_names_exist() -> None:
    names = re.findall(r"\]\(([^)#:]+)\)", README)
    assert "LICENSE" in names
    assert all((ROOT / name).exists() for name in names)
