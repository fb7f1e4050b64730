"""``make chaos``: the storm through two proxies, one over ``durability``, and control runs, which have to be caught.

All of it happens in a network of its own, where it can drop packets and disturbs nobody.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console

from tests.chaos.proxies import Proxy
from tests.chaos.storm import (
    DURABILITY,
    EVERYTHING,
    NODES,
    Crew,
    Outcome,
    by_naive_fan_out,
    fleet,
    kills_of,
    report,
    storm,
    through,
    under_durability,
    under_no_rule,
)
from tests.namespace import inside, why_not

INSIDE = "ACKGATE_CHAOS_INSIDE"
MORE_S = 300.0  # for what was not done yet
CONTROL = ("primary killed with writes unreplicated",)


@click.command()
@click.option("--kills", default=30, show_default=True, help="Busy primaries to kill in the storm, at least.")
@click.option("--seconds", default=200, show_default=True, help="How long the storm lasts, or up to 300 s longer.")
@click.option("--held-kills", default=6, show_default=True, help="Primaries to kill in the storm over durability.")
@click.option("--held-seconds", default=60, show_default=True, help="The longest that it may last.")
@click.option("--control-kills", default=2, show_default=True, help="Primaries to kill in each control run.")
@click.option("--control-seconds", default=40, show_default=True, help="The longest that a control run may last.")
@click.option("--only", multiple=True, help="This kind of fault alone, and no other storm; may be given again.")
@click.option("--seed", default=1, show_default=True, help="Chooses shards and moments.")
def main(
    kills: int,
    seconds: float,
    held_kills: int,
    held_seconds: float,
    control_kills: int,
    control_seconds: float,
    only: tuple[str, ...],
    seed: int,
) -> None:
    """Exits with 1 when an acknowledged write was lost or an invariant broken through the proxies, when a kind of fault
    did not come to pass in the time given, or when a control run was not caught."""
    if INSIDE not in os.environ:
        _go_inside()
    console = Console(width=150, highlight=False)
    folder = Path(tempfile.mkdtemp(prefix="ackgate-chaos-"))

    def run(name: str, plan: tuple[str, ...], crew: Crew, kills: int, seconds: float, proxies: list[Proxy]) -> Outcome:
        bounds = {"kills": kills, "seconds": seconds}
        if proxies:
            bounds |= {"at_least": seconds, "seconds": seconds + MORE_S}
        outcome = storm(running, name, plan, crew, **bounds, seed=seed, proxies=proxies, tell=click.echo)
        slowest, fault = outcome.faults.slowest
        told = f"proxies served {slowest:.2f} s behind whole nodes at most ({fault})" if proxies else ""
        console.print(f"{name}: {outcome.seconds:.0f} s, {len(outcome.lost)} acknowledged writes lost; {told}")
        return outcome

    with fleet(folder, DURABILITY) as (running, proxies):
        plan = only or EVERYTHING
        outcomes = [run("ackgate", plan, through(proxies), 0 if only else kills, seconds, proxies)]
        wrong = faults_of(outcomes[0], plan)
        if not only:
            controls = [run("naive fan-out", CONTROL, by_naive_fan_out, control_kills, control_seconds, [])]
            held = run("durability", NODES, under_durability, held_kills, held_seconds, [])
            controls.append(run("no rule", CONTROL, under_no_rule, control_kills, control_seconds, []))
            outcomes += [controls[0], held, controls[1]]
            wrong += faults_of(held)
            wrong += [f"{each.name} was not caught: this storm proves nothing" for each in controls if not each.lost]
    console.print(report(outcomes))
    if wrong:
        console.print("\n".join([*wrong, f"the logs of the proxies and nodes are in {folder}"]))
        raise SystemExit(1)
    shutil.rmtree(folder)


def faults_of(outcome: Outcome, plan: tuple[str, ...] = ()) -> list[str]:
    """What should not be."""
    wrong = [f"{outcome.name}: {example}" for example in outcome.ledger.examples]
    if outcome.lost:
        wrong.append(f"{outcome.name}: acknowledged and lost: {' '.join(outcome.lost[:20])}")
    if outcome.faults.kills < outcome.kills:
        wrong.append(f"{outcome.name}: only {kills_of(outcome)} busy primaries were killed in the time given")
    if missed := sorted(set(plan) - set(outcome.faults.done)):
        wrong.append(f"{outcome.name}: not done in the time given: {', '.join(missed)}")
    return wrong


def _go_inside() -> None:
    """Begin again in a network of one's own."""
    reason = why_not()
    if reason is not None:
        raise SystemExit(f"make: the storm needs a network of its own to drop packets in: {reason}")
    sys.stdout.flush()
    command = inside(sys.executable, "-m", "tests.chaos", *sys.argv[1:])
    os.execvpe(command[0], command, os.environ | {INSIDE: "yes"})


if __name__ == "__main__":
    main()
