"""A network of one's own, in which packets can be dropped and nobody else is disturbed: loopback and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess

NEEDED = ("unshare", "ip", "iptables", "tc")


def inside(*command: str) -> list[str]:
    """What runs a command in a new network; its user is root there."""
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *as_root, "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]


def why_not() -> str | None:
    """What keeps us from making one; None: nothing does."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found; install it (on Debian: apt install iptables iproute2 util-linux)"
    tried = subprocess.run(inside("iptables", "-S"), capture_output=True, text=True)
    return " ".join(tried.stderr.split()) or "no network namespace can be made" if tried.returncode else None
