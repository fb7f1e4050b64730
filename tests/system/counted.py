"""A proxy that tells what it has: run with a configuration, it answers each line on its standard input with counts."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from collections import Counter
from typing import Any

import trio

from proxy.configfile import load
from proxy.observe.log import configure_log
from proxy.server import Server
from proxy.settings import ProxySettings

MB = 1 << 20


def counts(server: Server) -> dict[str, Any]:
    """What is there once everything that only waits for the collector is gone."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as statm:
        resident = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    ours = Counter(type(each).__qualname__ for each in gc.get_objects() if type(each).__module__.startswith("proxy."))
    return {
        "clients": len(server.plane.clients),
        "leased": server.lanes.leased,
        "lanes": sum(1 for _ in server.lanes.all_connected()),
        "users": {str(identity): lanes.sessions for identity, lanes in server.lanes.sets.items()},
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "resident_mb": resident / MB,
        "objects": dict(ours),
    }


async def main(file: str) -> None:
    settings = load(file, ProxySettings)
    server = Server(settings, log=configure_log(settings.log))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        await server.wait_ready()
        print(server.address[1], flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline):
            print(json.dumps(counts(server)), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
