"""METRICS.md, made from the families: ``python -m proxy.observe.page [FILE]`` writes it (default METRICS.md).

What lives here: how the page looks.  What may not: what it says, which stands beside each family.
"""

from __future__ import annotations

import sys
from pathlib import Path

from proxy.observe.families import GROUPS, PREFIX, Family

_HEAD = """# Metrics

Served by the admin port under `/metrics`, in the text format of Prometheus or as OpenMetrics, whichever is asked for.
This page is made from the code (`make metrics-page`); a test holds it against what a proxy serves.

- Counters rise only; their names end in `_total`. Histograms have `_bucket`, `_sum` and `_count`.
  Some of both have `_created` besides: since when they are counted.
- `shard` is a shard's id, `node` and `replica` are addresses, `command` is the engine's own name for it (`get`,
  `config|get`), `unknown` for all that it has none for. No label carries a key, a value, a user's name or a password.
- With several workers, one scrape tells of all of them. "together" says how: the **sum** of what each has for itself,
  the **max** or **min** of what all are told of the same thing, which one hears of sooner than another. What a worker
  that is gone had counted stays in the sums.
- What is said of shards and nodes is what the proxy's own probes saw last (`timeouts.probe_interval`; memory, clients
  and traffic of nodes are up to 5 s old): a scrape asks no node. Of a node that does not answer there are `up`,
  `primary` and its last offset alone.
"""
_GROUP_NOTES = {
    "Commands": "A command's series are there once it was used. Without `admin.command_metrics` nothing is counted by "
    "command, and no command is timed.",
    "Acknowledgments": "The steps are those of the README's picture: dispatch 1-2, execute 2-3, relay 3-4, replicate "
    "5-6, persist 7-8.",
    "Process": "Besides these, `process_*` (CPU, memory, descriptors, start) and `python_*` (version, garbage "
    "collector) as every program with prometheus-client has them.",
    "Workers": "There with `workers` above 1 only, told by the process that holds the workers together.",
}


def page() -> str:
    """The whole page, as Markdown."""
    parts = [_HEAD]
    for title, group in GROUPS.items():
        parts.append(f"\n## {title}\n\n")
        if title in _GROUP_NOTES:
            parts.append(f"{_GROUP_NOTES[title]}\n\n")
        parts.append("| metric | type | labels | together | what it is |\n|---|---|---|---|---|\n")
        parts.extend(map(_row, group))
    parts.append("\n## Buckets\n\n")
    parts.extend(_buckets(family) for group in GROUPS.values() for family in group if family.buckets)
    return "".join(parts)


def _row(family: Family) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    together = "max" if family.together == "seen" else family.together
    text = family.text.replace("|", "\\|")
    return f"| `{family.scraped_name}` | {family.kind} | {labels} | {together} | {text} |\n"


def _buckets(family: Family) -> str:
    ends = ", ".join(f"{end:g}" for end in family.buckets)
    return f"- `{PREFIX}{family.name}`: {ends}\n"


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else "METRICS.md").write_text(page())
