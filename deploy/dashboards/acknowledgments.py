"""The eight steps of a write, what WAIT and WAITAOF came to, rounds, and how far replicas are behind."""

from __future__ import annotations

from deploy.dashboards.panels import BLUE, GREEN, ORANGE, RED, Page, Panel, Query, Row
from deploy.dashboards.words import MARKS, PROXY, RESULTS, SHARD, VARIABLES, both, mean, quantile, rate, worst

STEPS = """
| | step | |
|--:|:--|:--|
| **1** write | application → proxy | |
| **2** route | proxy → primary | 1 to 2: **dispatch** |
| **3** done | primary → proxy | 2 to 3: **execute** |
| **4** ack | proxy → application | 3 to 4: **relay** |
| **5** replicate | primary → replica | |
| **6** ack | replica → primary | 5 to 6: **replicate**, `WAIT` |
| **7** persist | replica → its disk | |
| **8** fsynced | its disk → replica | 7 to 8: **persist**, `WAITAOF` |
"""
_STEP_COLOURS = {
    "dispatch": "light-blue",
    "execute": BLUE,
    "relay": "dark-blue",
    "replicate": GREEN,
    "persist": ORANGE,
}


def _step(step: str, title: str, help: str) -> Panel:
    expr = quantile(0.99, "ackgate_step_seconds", f'{SHARD},step="{step}"', "shard")
    return Panel(title, help, (Query(expr, "{{shard}}"),), unit="s")


PAGE = Page(
    "acknowledgments",
    "Acknowledgments",
    "The eight steps of a write's way, and what WAIT, WAITAOF and durability came to.",
    (
        Row(
            "The way of a write",
            (
                Panel("The eight steps", "", kind="text", text=STEPS, height=9),
                Panel(
                    "Each step, median",
                    "The first three of plain commands, which are sampled; the others of rounds, or of a probe where "
                    "none runs.",
                    (Query(quantile(0.5, "ackgate_step_seconds", SHARD, "step"), "{{step}}"),),
                    unit="s",
                    height=9,
                    colours=_STEP_COLOURS,
                    logarithmic=True,
                ),
                Panel(
                    "Each step, 99 %",
                    "What one in a hundred exceeds.",
                    (Query(quantile(0.99, "ackgate_step_seconds", SHARD, "step"), "{{step}}"),),
                    unit="s",
                    height=9,
                    colours=_STEP_COLOURS,
                    logarithmic=True,
                ),
                _step("execute", "Execute by shard, 99 %", "From a command taken for the shard to its reply."),
                _step("replicate", "Replicate by shard, 99 %", "From an offset to its acknowledgment by the replicas."),
                _step("persist", "Persist by shard, 99 %", "From a marker to its fsync by the replicas."),
            ),
        ),
        Row(
            "WAIT and WAITAOF",
            (
                Panel(
                    "Answers by result",
                    "reached: as many as asked for; deadline: fewer, at the timeout; unconfirmed: no number, since a "
                    "primary's life had ended; refused: an error; gone: the client left.",
                    (Query(rate("ackgate_wait_seconds_count", by="result"), "{{result}}"),),
                    unit="ops",
                    colours=RESULTS,
                    stacked=True,
                ),
                Panel(
                    "Time to the answer",
                    "From the command's turn.",
                    (
                        *both("ackgate_wait_seconds", f'{PROXY},command="wait"', legend="WAIT"),
                        *both("ackgate_wait_seconds", f'{PROXY},command="waitaof"', legend="WAITAOF"),
                    ),
                    unit="s",
                    logarithmic=True,
                    colours={
                        "^WAIT median": "light-blue",
                        "^WAIT 99": BLUE,
                        "AOF median": "light-orange",
                        "AOF 99": ORANGE,
                    },
                ),
                Panel(
                    "Answers by replicas",
                    "How many replicas the answer told, a second.",
                    (
                        Query(
                            rate("ackgate_wait_replicas_total", by="command, replicas") + " > 0",
                            "{{command}} {{replicas}}",
                        ),
                    ),
                    unit="ops",
                ),
            ),
        ),
        Row(
            "Rounds",
            (
                Panel(
                    "Rounds and who waited",
                    "One round asks a shard for all who wait at that moment.",
                    (
                        Query(rate("ackgate_ack_rounds_total"), "rounds"),
                        Query(rate("ackgate_wait_seconds_count"), "WAIT and WAITAOF"),
                    ),
                    unit="ops",
                    colours={"rounds": BLUE, "WAIT": GREEN},
                ),
                Panel(
                    "Waiters of a round",
                    "How many shared one.",
                    (
                        Query(mean("ackgate_ack_round_waiters"), "mean"),
                        Query(quantile(0.99, "ackgate_ack_round_waiters"), "99 %"),
                    ),
                    colours={"mean": BLUE, "99 %": ORANGE},
                ),
                Panel(
                    "Off the usual way",
                    "raised: a marker on a lane that carried one already; alone: a wait answered by itself; refused: "
                    "markers that a shard did not take.",
                    (
                        Query(rate("ackgate_ack_fallbacks_total", by="kind"), "{{kind}}"),
                        Query(rate("ackgate_ack_markers_refused_total"), "refused"),
                    ),
                    unit="ops",
                    colours={"refused": RED},
                ),
            ),
        ),
        Row(
            "Lag",
            (
                Panel(
                    "Behind, in time",
                    "Age of the oldest part of its primary's data that a replica is not known to have; one that starts "
                    "anew lacks everything for a moment.",
                    (Query(worst("ackgate_replica_lag_seconds", SHARD, "replica"), "{{replica}}"),),
                    unit="s",
                    steps=((None, GREEN), (5, RED)),
                ),
                Panel(
                    "Behind, in bytes",
                    "Of its primary's replication offset.",
                    (Query(worst("ackgate_replica_lag_bytes", SHARD, "replica"), "{{replica}}"),),
                    unit="bytes",
                ),
                Panel(
                    "Waiting now",
                    "WAIT and WAITAOF, and questions for writes whose replies are kept back.",
                    (
                        Query(f"sum(ackgate_waits_open{{{PROXY}}})", "WAIT and WAITAOF"),
                        Query(f"sum(ackgate_concern_questions_open{{{PROXY}}})", "durability"),
                    ),
                    colours={"WAIT": BLUE, "durability": GREEN},
                ),
            ),
        ),
        Row(
            "Durability and trust",
            (
                Panel(
                    "Replies kept back, by result",
                    "Of writes under durability rules. passed: the reply, though the rule was not met; deadline, "
                    "refused, unconfirmed: an error.",
                    (Query(rate("ackgate_concern_replies_total", by="result"), "{{result}}"),),
                    unit="ops",
                    colours=RESULTS,
                    stacked=True,
                ),
                Panel(
                    "Without a number",
                    "WAIT and WAITAOF that a primary's end left without an answer, in what is shown.",
                    (
                        Query(
                            f"sum by (instance) (increase(ackgate_acks_unconfirmed_total{{{PROXY}}}[$__range]))",
                            "{{instance}}",
                        ),
                    ),
                    "stat",
                    steps=((None, GREEN), (1, ORANGE)),
                    decimals=0,
                ),
                Panel(
                    "Is its word on fsync believed?",
                    "Not where the engine is known to claim one before it happened: WAITAOF is an error then.",
                    (Query(f"min by (shard) (ackgate_shard_waitaof_trusted{{{SHARD}}})", "{{shard}}"),),
                    "states",
                    states={"0": ("no", RED), "1": ("yes", GREEN)},
                ),
            ),
        ),
    ),
    VARIABLES,
    MARKS,
)
