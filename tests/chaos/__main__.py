"""``make chaos``: the storm through the proxy, one over ``durability``, and control runs, which have to be caught."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
from rich.console import Console

from tests.chaos.storm import (
    DURABILITY,
    EVERYTHING,
    Crew,
    Outcome,
    by_naive_fan_out,
    cluster,
    report,
    storm,
    through_the_proxy,
    under_durability,
    under_no_rule,
)


@click.command()
@click.option("--kills", default=32, help="Primaries to kill in the storm.")
@click.option("--seconds", default=270, help="The longest that the storm may last.")
@click.option("--held-kills", default=8, help="Primaries to kill in the storm over durability.")
@click.option("--held-seconds", default=90, help="The longest that it may last.")
@click.option("--control-kills", default=4, help="Primaries to kill in each control run.")
@click.option("--control-seconds", default=60, help="The longest that a control run may last.")
@click.option("--seed", default=1, help="Chooses shards and moments.")
def main(
    kills: int,
    seconds: float,
    held_kills: int,
    held_seconds: float,
    control_kills: int,
    control_seconds: float,
    seed: int,
) -> None:
    """Exits with 1 when an acknowledged write was lost through the proxy, or when a control run was not caught."""
    console = Console()
    tell = console.print if console.is_terminal else lambda line: None

    def run(name: str, crew: Crew, kills: int, seconds: float) -> Outcome:
        return storm(running, name, EVERYTHING, crew, kills=kills, seconds=seconds, seed=seed, tell=tell)

    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder)) as running:
        through = run("ackgate", through_the_proxy, kills, seconds)
        naive = run("naive fan-out", by_naive_fan_out, control_kills, control_seconds)
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder), DURABILITY) as running:
        held = run("durability", under_durability, held_kills, held_seconds)
        no_rule = run("no rule", under_no_rule, control_kills, control_seconds)
    console.print(report([through, naive, held, no_rule]))
    wrong = [*faults_of(through, kills), *faults_of(held, held_kills)]
    wrong += [f"{each.name} was not caught: this storm proves nothing" for each in (naive, no_rule) if not each.lost]
    for line in wrong:
        console.print(line)
    raise SystemExit(bool(wrong))


def faults_of(outcome: Outcome, kills: int) -> list[str]:
    """What should not be."""
    wrong = []
    if outcome.lost:
        wrong.append(f"{outcome.name}: acknowledged and lost: {' '.join(outcome.lost[:20])}")
    if outcome.faults.kills < kills:
        wrong.append(f"{outcome.name}: only {outcome.faults.kills} of {kills} primaries were killed in the time given")
    return wrong


if __name__ == "__main__":
    main()
