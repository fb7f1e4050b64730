# ruff: noqa: E501 (a paragraph of the page is one line)
"""COMPATIBILITY.md, written from what was measured: ``python -m tests.compat.page`` (``make compat``)."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tests.compat.explained import explanation
from tests.compat.measure import Seen, measure
from tests.compat.remarks import CLUSTER, DIFFERENT, PROGRAMS, REMARKS, RUNS_ON
from tests.compat.suites import SAVED, TARGETS
from tests.harness import ROOT

PAGE = ROOT / "COMPATIBILITY.md"
GROUPS = {
    "string": "Strings",
    "generic": "Keys of any type",
    "hash": "Hashes",
    "list": "Lists",
    "set": "Sets",
    "sorted-set": "Sorted sets",
    "stream": "Streams",
    "bitmap": "Bitmaps",
    "hyperloglog": "HyperLogLog",
    "geo": "Geo",
    "scripting": "Scripts and functions",
    "transactions": "Transactions",
    "pubsub": "Publish and subscribe",
    "connection": "Connections",
    "server": "Server",
    "cluster": "Cluster",
}
STATUSES = {
    "same": "every reply byte for byte that of a plain server",
    "same in form": "type, fields and elements are the same; ids, times, figures or the order are not compared",
    "differs": "some replies are others, see below",
    "refused": "an error that says so",
}

INTRODUCTION = """\
# Compatibility

Every command and subcommand of the engine, called with arguments that succeed and with some that do not, in RESP2 and RESP3, straight to one plain Valkey server and
through Ackgate with three shards, and the replies compared byte by byte. Where a command ran was read off the nodes' own statistics. Nothing here is written by hand
but the remarks: `make compat` writes this page anew, and a test fails when it is not what the calls say.
"""


def is_container(row: Seen, seen: Mapping[str, Seen]) -> bool:
    """CONFIG by itself is nothing but an error; its subcommands are what is called."""
    return " " not in row.name and not row.succeeded and any(name.startswith(f"{row.name}|") for name in seen)


def render(seen: Mapping[str, Seen], suites: Mapping[str, Any]) -> str:
    """The page."""
    rows = [each for each in seen.values() if not is_container(each, seen)]
    containers = len(seen) - len(rows)
    parts = [INTRODUCTION, *_summary(rows, containers), *_differences(rows), *_programs(), *_suites(suites), *_tables(rows)]
    return "\n".join(parts) + "\n"


def _summary(rows: list[Seen], containers: int) -> Iterator[str]:
    counts = Counter(row.status for row in rows)
    calls = sum(row.calls for row in rows)
    yield f"## In short\n\n{len(rows)} commands and subcommands ({containers} more, as CONFIG, only contain others), {calls} comparisons.\n"
    yield "| replies | commands | |\n|---|---:|---|"
    for status, meaning in STATUSES.items():
        yield f"| {status} | {counts[status]} | {meaning} |"
    yield ""


def _differences(rows: list[Seen]) -> Iterator[str]:
    yield "## What is not as on a plain server\n"
    yield "**Keys of one command share a slot**, as in any cluster: use a hash tag, `{user:1}:name`. Else the engine's own `CROSSSLOT` comes back, the same as of a"
    yield "cluster without a proxy: " + _names(row for row in rows if row.one_slot) + "."
    split = _names(row for row in rows if row.policy == "multi_shard")
    yield f"\n**Keys may be anywhere** with {split}: these are split over the shards and joined again.\n"
    refused = defaultdict(list)
    for row in rows:
        if row.status == "refused":
            refused[row.errors[0].replace(row.name, "...")].append(row)
    for message, these in sorted(refused.items()):
        yield f"**Refused**: {_names(these)}. `{message}`\n"
    different = [row for row in rows if row.status == "differs"]
    if different:
        yield "**Other replies**:\n\n| command | call | why |\n|---|---|---|"
        for row in sorted(different, key=lambda row: row.name):
            call = "<br>".join(f"`{_cell(each)}`" for each in row.different[:3])
            yield f"| {row.name.upper()} | {call} | {DIFFERENT.get(row.name, _unexplained(row))} |"
        yield ""
    yield f"`CLUSTER`, `ASKING`, `READONLY` and `READWRITE` are answered as by {CLUSTER}.\n"


def _unexplained(row: Seen) -> str:
    return f"`{_cell(row.errors[0])}`" if row.errors else "not explained"


def _programs() -> Iterator[str]:
    yield "## Clients and frameworks\n\nEach run by a test:\n\n| | |\n|---|---|"
    for name, said in PROGRAMS.items():
        yield f"| {name} | {said} |"
    yield ""


def _suites(suites: Mapping[str, Any]) -> Iterator[str]:
    if not suites:
        return
    yield "## Other people's tests\n"
    yield "The suites of client libraries for commands, pipelines, pub/sub, scripts, locks, hashes, functions, encodings, MONITOR, client-side caching and keyspace"
    yield "notifications, for threads and for asyncio, with the plain client: against one server, against a cluster of one node, and through Ackgate with three shards (`make compat-suites`).\n"
    yield "| | tests | pass on one server | on a cluster of one node | through Ackgate | of the first | of the second | skipped |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for suite in suites.values():
        counts, shares = suite["counts"], suite["shares"]
        passed = [counts[target].get("passed", 0) for target in TARGETS]
        total = sum(counts["proxy"].values())
        skipped = counts["proxy"].get("skipped", 0)
        figures = " | ".join(map(str, (total, *passed)))
        yield f"| {suite['title']} | {figures} | {shares['standalone']:.2f} % | {shares['cluster']:.2f} % | {skipped} |"
    yield "\nWhat passes on one server and not through Ackgate:\n"
    yield "| | tests | of these fail on a cluster of one node too |\n|---|---:|---:|"
    reasons: dict[str, list[str]] = defaultdict(list)
    for suite in suites.values():
        for test, row in suite["differing"].items():
            reasons[explanation(test, row) or "not explained: " + test.rpartition("::")[2]].append(row["cluster"])
    for why, outcomes in sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0])):
        yield f"| {_cell(why)} | {len(outcomes)} | {sum(each != 'passed' for each in outcomes)} |"
    yield ""


def _tables(rows: list[Seen]) -> Iterator[str]:
    yield "## Every command\n"
    yield "*Runs on*: the shard of its keys; one shard (there is no key); split by key; every primary; every node, replicas too; or the proxy answers itself.\n"
    for group, title in GROUPS.items():
        these = sorted((row for row in rows if row.group == group), key=lambda row: row.name)
        yield f"### {title}\n\n| command | replies | runs on | remarks |\n|---|---|---|---|"
        for row in these:
            yield f"| {row.name.upper()} | {row.status} | {_where(row)} | {_remark(row)} |"
        yield ""
    assert {row.group for row in rows} <= GROUPS.keys(), "the engine has a new group of commands"


def _where(row: Seen) -> str:
    if row.status == "refused":
        return ""
    if row.name in RUNS_ON:
        return RUNS_ON[row.name]
    if not row.primaries:
        return "the proxy"
    if row.policy == "multi_shard":
        return "split by key"
    if row.keyed:
        return "shard of its keys"
    if row.primaries == 1:
        return "one shard"
    return "every node" if row.replicas and not row.writes else "every primary"


def _remark(row: Seen) -> str:
    if row.status == "refused":
        return f"`{_cell(row.errors[0])}`"
    said = [REMARKS.get(row.name, ""), row.normalised if row.status == "same in form" else ""]
    if row.status == "differs":
        said.append(DIFFERENT.get(row.name, _unexplained(row)))
    return "; ".join(filter(None, said))


def _names(rows: Iterable[Seen]) -> str:
    return ", ".join(sorted(row.name.upper() for row in rows))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'")


def saved() -> dict[str, Any]:
    """The figures of the suites as they were kept."""
    return json.loads(SAVED.read_text()) if SAVED.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.compat.page", description=__doc__)
    parser.parse_args()
    page = render(measure(lambda text: print(text, file=sys.stderr)), saved())
    PAGE.write_text(page)
    print(f"{PAGE.relative_to(ROOT)} is written")


if __name__ == "__main__":
    main()
