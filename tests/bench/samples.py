"""What one measurement has found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one workload on one target."""

    per_second: float = 0.0
    cpu_us: float = 0.0
    """Microseconds of CPU of the target for one command."""
    shards_cpu_us: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    resident_bytes: float = 0.0
    resident_before: float = 0.0
    """With all clients connected, and none of them asking for anything."""
    resident_growth: float = 0.0
    """The most that was resident in the second half of the time, over the most in the first, less one."""
    load_share: float = 0.0
    """Part of one CPU that the clients had: near one, they and not the target are measured."""
    silent_clients: int = 0
    bytes_per_client: float | None = None


@dataclass(frozen=True)
class Sample(Figures):
    """One workload on one target in one round."""

    workload: str
    target: str
    round: int
    failure: str = ""
    """Why there are no figures; empty: there are."""
    commands: int = 0
    others_share: float = 0.0
    doubt: str = ""
    """Why the figures are not what they should be; empty: they are."""
