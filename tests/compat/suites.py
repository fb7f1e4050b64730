"""Other people's tests: the suites of redis-py and valkey-py, direct and through the proxy, and what differs.

``python -m tests.compat.suites`` (``make compat-suites``) downloads the source of the version installed, runs its tests
against a plain server, against a cluster of one node and through the proxy with three shards, each with the plain
client, and prints what passes where.  ``--save`` keeps the figures in ``suites.json``, from which the page is made.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from tests.compat.explained import explanation
from tests.compat.measure import one_node_cluster
from tests.harness import ROOT, up
from tests.system.beside import plain_server

HERE = Path(__file__).parent
CACHE = HERE / ".cache"
SAVED = HERE / "suites.json"
TARGETS = ("standalone", "cluster", "proxy")
EACH_S = 30
"""Seconds for one test."""
TOPICS = (
    *("commands", "pipeline", "pubsub", "scripting", "lock", "hash", "function", "encoding", "monitor", "cache"),
    "keyspace_notifications",
)


class Suite(NamedTuple):
    """One package on PyPI that brings its tests along; ``option`` tells them where the server is."""

    package: str
    option: str
    scheme: str

    @property
    def title(self) -> str:
        return f"{self.package}-py {version(self.package)}"


SUITES = (Suite("redis", "--redis-url", "redis"), Suite("valkey", "--valkey-url", "valkey"))


class Outcome(NamedTuple):
    """How one test ended: ``passed``, ``failed`` or ``skipped``, and why."""

    outcome: str
    reason: str


Outcomes = dict[str, Outcome]


# -- running -----------------------------------------------------------------------------------------------------------


def source(suite: Suite) -> Path:
    """The folder with the source of the version installed, downloaded once."""
    name = f"{suite.package}-{version(suite.package)}"
    folder = CACHE / name
    if folder.exists():
        return folder
    CACHE.mkdir(exist_ok=True)
    wanted = f"{suite.package}=={version(suite.package)}"
    command = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", suite.package, "--dest", str(CACHE)]
    subprocess.run([sys.executable, *command, wanted], check=True)
    with tarfile.open(CACHE / f"{name}.tar.gz") as archive:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # from Python 3.11.4 on
        archive.extractall(CACHE, **safely)
    assert (folder / "tests").is_dir(), f"the source of {name} brings no tests"
    return folder


@contextmanager
def servers(names: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Target -> host and port."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ackgate-compat-")))
        found = {}
        if "standalone" in names:
            port = stack.enter_context(plain_server(folder / "standalone", appendonly="yes"))
            found["standalone"] = f"127.0.0.1:{port}"
        if "cluster" in names:
            found["cluster"] = f"127.0.0.1:{stack.enter_context(one_node_cluster(folder / 'cluster'))}"
        if "proxy" in names:
            running = stack.enter_context(up(folder, "--port", "0", "--admin-port", "0", name="proxy"))
            found["proxy"] = running.redis_url.partition("://")[2]
        yield found


@contextmanager
def running(suite: Suite, target: str, address: str, only: str | None) -> Iterator[subprocess.Popen[bytes]]:
    """One suite against one server."""
    folder = source(suite)
    topics = [f"tests/{kind}test_{topic}.py" for kind in ("", "test_asyncio/") for topic in TOPICS]
    command = [
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "ackgate_recorder", "-p", "no:trio"),
        *("-p", "no:hypothesispytest", "-q", "--no-header", "--tb=native", "-m", "not onlycluster and not ssl"),
        *("-o", f"timeout={EACH_S}", "-o", "addopts=", suite.option, f"{suite.scheme}://{address}/0"),
        *(file for file in topics if (folder / file).exists()),
        *(("-k", only) if only else ()),
    ]
    path = os.pathsep.join([str(HERE / "recorder"), str(folder)])
    environment = {**os.environ, "PYTHONPATH": path, "ACKGATE_RECORD": str(record_of(suite, target))}
    record_of(suite, target).write_text("")
    with log_of(suite, target).open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run(suite: Suite, addresses: dict[str, str], only: str | None) -> None:
    """Run one suite against all servers side by side: most of its time goes into waiting."""
    source(suite)
    with ExitStack() as stack:
        processes = {
            target: stack.enter_context(running(suite, target, address, only)) for target, address in addresses.items()
        }
        began = said = time.monotonic()
        while True:
            ended = all(process.poll() is not None for process in processes.values())
            now = time.monotonic()
            if ended or now - said >= (1 if sys.stderr.isatty() else 15):
                said = now
                line = "   ".join(f"{target} {_progress(suite, target)}" for target in addresses)
                end = "\r" if sys.stderr.isatty() and not ended else "\n"
                print(f"{suite.title}  {now - began:4.0f} s  {line}", file=sys.stderr, end=end, flush=True)
            if ended:
                break
            time.sleep(0.2)
        for target, process in processes.items():
            if process.returncode not in (0, 1):
                raise SystemExit(f"the suite itself did not run: see {log_of(suite, target)}")


def _progress(suite: Suite, target: str) -> str:
    collected, outcomes = read(record_of(suite, target))
    failed = sum(each.outcome == "failed" for each in outcomes.values())
    return f"{len(outcomes)} of {collected}, {failed} failed"


def record_of(suite: Suite, target: str) -> Path:
    return CACHE / f"{suite.package}-{target}.jsonl"


def log_of(suite: Suite, target: str) -> Path:
    return CACHE / f"{suite.package}-{target}.log"


def read(record: Path) -> tuple[int, Outcomes]:
    """How many tests there are, and how those that are done ended."""
    rows = [json.loads(line) for line in record.read_text().splitlines() if line.endswith("}")]
    collected = sum(row.get("collected", 0) for row in rows)
    return collected, {row["test"]: Outcome(row["outcome"], row["reason"]) for row in rows if "test" in row}


# -- reporting ---------------------------------------------------------------------------------------------------------


class Figures(NamedTuple):
    """What one suite gave, ready to be kept."""

    title: str
    counts: dict[str, dict[str, int]]
    shares: dict[str, float]
    differing: dict[str, dict[str, str]]


def compare(suite: Suite, results: dict[str, Outcomes]) -> Figures:
    """Count, and pick the tests that pass direct and not through the proxy."""
    counts = {target: dict(Counter(each.outcome for each in outcomes.values())) for target, outcomes in results.items()}
    proxied = results.get("proxy", {})
    shares = {}
    differing: dict[str, dict[str, str]] = {}
    for target in TARGETS[:2]:
        passed = [test for test, each in results.get(target, {}).items() if each.outcome == "passed"]
        kept = [test for test in passed if proxied.get(test, Outcome("missing", "")).outcome == "passed"]
        shares[target] = round(100 * len(kept) / len(passed), 2) if passed else 100.0
        for test in sorted(set(passed) - set(kept)):
            missing = Outcome("missing", "not collected")
            row = {name: results.get(name, {}).get(test, missing).outcome for name in TARGETS}
            differing[test] = {**row, "reason": proxied.get(test, missing).reason}
    return Figures(suite.title, counts, shares, differing)


def report(figures: Figures) -> int:
    """Print the table; the number of tests that differ and are not explained."""
    print(f"\n{figures.title}")
    print(f"  {'':12}{'passed':>8}{'failed':>8}{'skipped':>8}   of these pass through the proxy")
    for target in TARGETS:
        row = figures.counts.get(target, {})
        share = f"{figures.shares[target]:.2f} %" if target in figures.shares else ""
        columns = "".join(f"{row.get(each, 0):8}" for each in ("passed", "failed", "skipped"))
        print(f"  {target:12}{columns}   {share}")
    reasons = {test: explanation(test, row) for test, row in figures.differing.items()}
    for why, count in Counter(why for why in reasons.values() if why).most_common():
        print(f"  {count:4} {why}")
    unexplained = [test for test, why in reasons.items() if why is None]
    for test in unexplained:
        row = figures.differing[test]
        outcomes = ", ".join(f"{name} {row[name]}" for name in TARGETS)
        print(f"  NOT EXPLAINED: {test} ({outcomes})\n      {' '.join(row['reason'].split())[:200]}")
    return len(unexplained)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.compat.suites", description=__doc__)
    parser.add_argument("--suite", choices=[each.package for each in SUITES], action="append", help="only this one")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this one")
    parser.add_argument("--save", action="store_true", help="keep the figures for COMPATIBILITY.md")
    parser.add_argument("-k", dest="only", help="only tests that match, as pytest's -k")
    args = parser.parse_args()
    if args.save and args.only:
        parser.error("--save keeps the figures of whole suites: leave out -k")
    targets = tuple(args.target or TARGETS)
    kept = json.loads(SAVED.read_text()) if SAVED.exists() else {}
    unexplained = 0
    for suite in SUITES:
        if args.suite and suite.package not in args.suite:
            continue
        with servers(targets) as addresses:
            run(suite, addresses, args.only)
        # A target left out counts as it did in an earlier run.
        known = [target for target in TARGETS if target in targets or record_of(suite, target).exists()]
        results = {target: read(record_of(suite, target))[1] for target in known}
        figures = compare(suite, results)
        unexplained += report(figures)
        kept[suite.package] = figures._asdict()
    if args.save:
        SAVED.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
        print(f"\nkept in {SAVED.relative_to(ROOT)}; make compat writes the page")
    sys.exit(1 if unexplained else 0)


if __name__ == "__main__":
    main()
