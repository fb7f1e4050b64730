"""Figures of one node from what it said of itself when it was last probed (``proxy.topology.watch``)."""

from __future__ import annotations

from collections.abc import Mapping

from proxy.observe.figures import NodeFigures
from proxy.topology.watch import NodeWatch
from shard.client import format_address

# By figure: the field of INFO, as a whole number.
_PRESENT = {
    "aof_rewriting": "aof_rewrite_in_progress",
    "aof_size": "aof_current_size",
    "aof_delayed": "aof_delayed_fsync",
    "rdb_saving": "rdb_bgsave_in_progress",
    "rdb_saved_at": "rdb_last_save_time",
    "rdb_changes": "rdb_changes_since_last_save",
    "aof_enabled": "aof_enabled",
    "uptime": "uptime_in_seconds",
}
"""In what every probe asks for."""
_USAGE = {
    "clients": "connected_clients",
    "blocked": "blocked_clients",
    "ops": "instantaneous_ops_per_sec",
    "commands": "total_commands_processed",
    "bytes_in": "total_net_input_bytes",
    "bytes_out": "total_net_output_bytes",
    "expired": "expired_keys",
    "evicted": "evicted_keys",
    "hits": "keyspace_hits",
    "misses": "keyspace_misses",
    "memory_used": "used_memory",
    "memory_rss": "used_memory_rss",
    "memory_limit": "maxmemory",
}
"""In what some probes ask for."""
_STATUS = {
    "aof_write_ok": "aof_last_write_status",
    "aof_rewrite_ok": "aof_last_bgrewrite_status",
    "rdb_ok": "rdb_last_bgsave_status",
}
"""By figure: the field that says ``ok`` or another word."""


def node_figures(watch: NodeWatch, shard: str) -> NodeFigures:
    """What is known of a node of the shard with the id ``shard``.

    Of one that does not answer, that, and what it was last: how busy or large it was then would look like the present.
    """
    info, usage = watch.info, watch.usage
    found: NodeFigures = {"shard": shard, "node": format_address(watch.host, watch.port), "up": int(watch.alive)}
    if not info:
        return found
    found["primary"] = int(info.get("role") == "master")
    found["offset"] = watch.offset
    if not watch.alive:
        return found
    numbers = {**_numbers(_PRESENT, info), **_numbers(_USAGE, usage)}
    numbers |= {key: int(info[field] == "ok") for key, field in _STATUS.items() if field in info}
    found.update(numbers)  # type: ignore[typeddict-item]
    found["loading"] = int(watch.loading)
    found["keys"] = watch.keys
    if "master_link_status" in info:
        found["link_up"] = int(info["master_link_status"] == "up")
    if watch.settings:
        found["aof_always"] = int(watch.settings.get("appendfsync") == "always")
    if "used_cpu_user" in usage:
        found["cpu_seconds"] = float(usage["used_cpu_user"]) + float(usage.get("used_cpu_sys", 0))
    return found


def _numbers(fields: Mapping[str, str], info: Mapping[str, str]) -> dict[str, int]:
    return {key: int(info[field]) for key, field in fields.items() if info.get(field, "").lstrip("-").isdigit()}
