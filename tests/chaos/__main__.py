"""``make chaos``: the long storm through the proxy, and a control run against naive fan-out, which has to be caught."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
from rich.console import Console

from tests.chaos.storm import EVERYTHING, cluster, report, storm


@click.command()
@click.option("--kills", default=32, help="Primaries to kill in the storm.")
@click.option("--seconds", default=270, help="The longest that the storm may last.")
@click.option("--control-kills", default=4, help="Primaries to kill in the control run.")
@click.option("--control-seconds", default=60, help="The longest that the control run may last.")
@click.option("--seed", default=1, help="Chooses shards and moments.")
def main(kills: int, seconds: float, control_kills: int, control_seconds: float, seed: int) -> None:
    """Exits with 1 when an acknowledged write was lost through the proxy, or when the control run was not caught."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder)) as running:
        tell = console.print if console.is_terminal else lambda line: None
        through = storm(running, "ackgate", EVERYTHING, kills=kills, seconds=seconds, seed=seed, tell=tell)
        control = storm(
            running,
            "naive fan-out",
            EVERYTHING,
            kills=control_kills,
            seconds=control_seconds,
            seed=seed,
            naive=True,
            tell=tell,
        )
    console.print(report([through, control]))
    if through.lost:
        console.print(f"acknowledged and lost: {' '.join(through.lost[:20])}")
    if through.faults.kills < kills:
        console.print(f"only {through.faults.kills} of {kills} primaries were killed in {seconds} s")
    if not control.lost:
        console.print("the control run was not caught: this storm proves nothing")
    raise SystemExit(bool(through.lost) or not control.lost or through.faults.kills < kills)


if __name__ == "__main__":
    main()
