"""What the process asks of the system it runs on: descriptors, memory, how often the collector looks."""

from __future__ import annotations

import ctypes
import gc
import resource
from collections.abc import Callable

from proxy.settings import ProxySettings

PRIVATE_LANES = 4  # descriptors kept for each session that may track keys: as many as the usual cluster has shards
SPARE_FILES = 1024  # descriptors kept for other lanes, control connections, logs and the admin port
COLLECTOR_THRESHOLDS = 10_000, 20, 50  # for the three generations: see the module gc
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT_MEMORY = 32 << 20  # bytes free at the end of the heap above which they are given back
LARGE_VALUE = 4 << 20  # bytes in one piece that are given back at once


def raise_file_limit(settings: ProxySettings, warn: Callable[..., None]) -> None:
    """Have descriptors for ``maxclients``, and the lanes of those who block, where the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    blocked = min(settings.lanes.blocked_per_shard, settings.clients.maxclients)
    private = settings.lanes.private_sessions * PRIVATE_LANES
    wanted = settings.clients.maxclients + blocked + private + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        if limit < wanted:
            cure = f"raise the hard limit (ulimit -Hn) to {wanted} or lower clients.maxclients"
            warn("fewer open files than maxclients needs", limit=limit, cure=cure)


def spare_the_collector() -> None:
    """What a command makes is gone with its reply, without a cycle: the search for cycles need not look at what stands
    from the start, nor look often.  Measured: with many who wait it took a tenth of the CPU, and halted all for tens of
    milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def keep_freed_memory() -> None:
    """Let freed memory lie ready for the next value instead of going back to the kernel with each (mallopt(3)).

    Without it every larger value costs the page faults of fresh memory: measured, a twelfth of the CPU for values of
    64 KB. Where the C library has no such options it is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT_MEMORY)
        mallopt(M_MMAP_THRESHOLD, LARGE_VALUE)
