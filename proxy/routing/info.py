"""INFO of the whole: the shards' texts merged field by field, with sections of the proxy's own.

A field is combined by a rule: of its name, else of its section.  Sections a client reads to learn about *the server
it is connected to* (server, clients, replication, cluster) are the proxy's; the caller gives them.  ``INFO shards``
is an addition: one line for each shard.

Source: the INFO page (https://valkey.io/commands/info/) and the engine's ``genValkeyInfoString`` (server.c).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from proxy.routing.slot_map import Ranges

Fields = dict[bytes, bytes]
Own = Mapping[str, Mapping[str, object]]
"""Section name (lower case) -> field -> value; the proxy's own sections."""

DEFAULT = (
    b"server", b"clients", b"memory", b"persistence", b"stats", b"replication", b"cpu", b"modules", b"errorstats",
    b"cluster", b"keyspace",
)  # fmt: skip
ALL = (
    b"server", b"clients", b"memory", b"persistence", b"stats", b"replication", b"cpu", b"modules", b"commandstats",
    b"errorstats", b"cluster", b"keyspace",
)  # fmt: skip
"""In the engine's order.  Latency percentiles cannot be merged truthfully, and the cluster behind is not the client's
concern: ``latencystats`` and ``cluster info`` are left out."""
SHARDS = b"shards"

_TITLES = {b"cpu": b"CPU"}
_ALIASES = {b"module_list": b"modules"}
_OWN = frozenset({b"server", b"clients", b"replication", b"cluster"})

# Of the engine's server section only this is true of the whole; the rest describes one process.
_ENGINE_FIELDS = (b"redis_version", b"server_name", b"valkey_version", b"valkey_release_stage", b"os", b"arch_bits")


@dataclass(frozen=True, slots=True)
class ShardFigures:
    """One line of ``INFO shards``.  ``primary`` is ``host:port`` or empty."""

    index: int
    id: str
    primary: str
    ranges: Ranges
    keys: int


def chosen_sections(names: Sequence[bytes]) -> tuple[bytes, ...]:
    """The sections a call of INFO shows, in order; ``names`` are its arguments.  Unknown names show nothing."""
    wanted: set[bytes] = set()
    for name in [each.lower() for each in names] or [b"default"]:
        if name == b"default":
            wanted.update(DEFAULT)
        elif name in (b"all", b"everything"):
            wanted.update(ALL)
        else:
            wanted.add(_ALIASES.get(name, name))
    return tuple(section for section in (*ALL, SHARDS) if section in wanted)


def shard_sections(names: Sequence[bytes]) -> tuple[bytes, ...]:
    """What to ask the shards for, so that :func:`merge_info` can answer; empty: nothing need be asked."""
    chosen = chosen_sections(names)
    return tuple(section for section in chosen if section == b"server" or section not in (*_OWN, SHARDS))


def merge_info(names: Sequence[bytes], texts: Sequence[bytes], own: Own, shards: Sequence[ShardFigures] = ()) -> bytes:
    """The text of ``INFO names...``.

    ``texts`` are the primaries' INFO texts (no frames; see :func:`shard_sections` for what to ask), ``own`` the
    proxy's own sections, ``shards`` what ``INFO shards`` shows.
    """
    parsed = [_parse(text) for text in texts]
    parts = []
    for section in chosen_sections(names):
        fields = _section(section, [each[section] for each in parsed if section in each], own, shards)
        if fields is None:
            continue
        title = b"# " + _TITLES.get(section, section.capitalize())
        parts.append(b"\r\n".join([title, *(b"%s:%s" % item for item in fields.items())]) + b"\r\n")
    return b"\r\n".join(parts)


def _section(section: bytes, found: Sequence[Fields], own: Own, shards: Sequence[ShardFigures]) -> Fields | None:
    if section == SHARDS:
        return dict(_shard_line(shard) for shard in shards)
    if section in _OWN:
        return _own_section(section, found, own)
    if not found:
        return None
    special = _SECTIONS.get(section)
    fields = special(found) if special is not None else _merged(section, found)
    return fields | {name.encode(): _bytes(value) for name, value in own.get(section.decode(), {}).items()}


def _own_section(section: bytes, found: Sequence[Fields], own: Own) -> Fields | None:
    fields: Fields = {}
    if section == b"server" and found:
        fields = {name: found[0][name] for name in _ENGINE_FIELDS if name in found[0]}
    if section == b"cluster":
        # A client that sees 1 here would start to ask for slots; to it this is one server.
        fields = {b"cluster_enabled": b"0"}
    if section == b"replication":
        fields = {b"role": b"master"}
    fields.update({name.encode(): _bytes(value) for name, value in own.get(section.decode(), {}).items()})
    return fields


def _parse(text: bytes) -> dict[bytes, Fields]:
    sections: dict[bytes, Fields] = {}
    current: Fields = {}
    for line in text.replace(b"\r\n", b"\n").split(b"\n"):
        if line.startswith(b"# "):
            current = sections.setdefault(line[2:].strip().lower(), {})
        elif line:
            name, _, value = line.partition(b":")
            # Every module has a line of the same name.
            current[name] = current[name] + b"\r\nmodule:" + value if name == b"module" and name in current else value
    return sections


# ---- rules of single fields ------------------------------------------------------------------------------------------

Rule = Callable[[Sequence[bytes]], bytes]


_UNITS = (b"K", b"M", b"G", b"T", b"P")
_NUMBER = re.compile(rb"-?[0-9]+(\.[0-9]+)?")


def _number(text: bytes) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) else None


def _places(values: Sequence[bytes]) -> int:
    return max(len(value.partition(b".")[2]) for value in values)


def _total(values: Sequence[bytes]) -> bytes:
    places = _places(values)
    if places:
        return b"%.*f" % (places, sum(float(value) for value in values))
    return b"%d" % sum(int(value) for value in values)


def _mean(values: Sequence[bytes]) -> bytes:
    numbers = [number for value in values if (number := _number(value.rstrip(b"%"))) is not None]
    percent = b"%" if values[0].endswith(b"%") else b""
    return b"%.2f%s" % (sum(numbers) / max(len(numbers), 1), percent)


def _greatest(values: Sequence[bytes]) -> bytes:
    return max(values, key=lambda value: _number(value) or 0)


def _least(values: Sequence[bytes]) -> bytes:
    return min(values, key=lambda value: _number(value) or 0)


def _first(values: Sequence[bytes]) -> bytes:
    return values[0]


def _worst_status(values: Sequence[bytes]) -> bytes:
    return next((value for value in values if value != b"ok"), values[0])


_RULES: dict[bytes, Rule] = {
    b"total_system_memory": _greatest,
    b"rdb_last_save_time": _least,
    b"latest_fork_usec": _greatest,
    b"instantaneous_eventloop_duration_usec": _greatest,
    b"current_cow_size_age": _greatest,
    b"active_defrag_running": _greatest,
    b"loading": _greatest,
    b"async_loading": _greatest,
    b"aof_enabled": _least,  # 1 promises it for every shard
}
# Then by how the name ends; the first that fits.
_ENDINGS: tuple[tuple[bytes, Rule], ...] = (
    (b"_status", _worst_status),
    (b"_time_sec", _greatest),
    (b"_in_progress", _greatest),
    (b"_perc", _mean),
    (b"_ratio", _mean),
    (b"_policy", _first),
    (b"_start_time", _least),
)


def _merged(section: bytes, found: Sequence[Fields]) -> Fields:
    columns: dict[bytes, list[bytes]] = {}
    for fields in found:
        for name, value in fields.items():
            columns.setdefault(name, []).append(value)
    merged = {name: _rule(name, values)(values) for name, values in columns.items()}
    return _derived(merged)


def _rule(name: bytes, values: Sequence[bytes]) -> Rule:
    if name in _RULES:
        return _RULES[name]
    for ending, rule in _ENDINGS:
        if name.endswith(ending):
            return rule
    # What is a number on every shard is a count or a size.
    return _total if all(_number(value) is not None for value in values) else _first


def _derived(fields: Fields) -> Fields:
    """Fields that follow from others are computed, so that the section does not contradict itself."""
    for name in fields:
        base = name.removesuffix(b"_human")
        if base != name and base in fields:
            fields[name] = _human(int(fields[base]))
    used, rss = int(fields.get(b"used_memory", 0)), int(fields.get(b"used_memory_rss", 0))
    if used and rss and b"mem_fragmentation_ratio" in fields:
        fields[b"mem_fragmentation_ratio"] = b"%.2f" % (rss / used)
        fields[b"mem_fragmentation_bytes"] = b"%d" % (rss - used)
    return fields


def _human(size: int) -> bytes:
    """``bytesToHuman`` of the engine (util.c)."""
    if size < 1024:
        return b"%dB" % size
    power = min((size.bit_length() - 1) // 10, len(_UNITS))
    return b"%.2f%s" % (size / 1024**power, _UNITS[power - 1])


# ---- sections of their own form --------------------------------------------------------------------------------------


def _values(text: bytes) -> dict[bytes, bytes]:
    return dict(item.partition(b"=")[::2] for item in text.split(b","))


def _line(values: Mapping[bytes, bytes]) -> bytes:
    return b",".join(b"%s=%s" % item for item in values.items())


def _by_line(found: Sequence[Fields], combine: Callable[[Sequence[dict[bytes, bytes]]], dict[bytes, bytes]]) -> Fields:
    lines: dict[bytes, list[dict[bytes, bytes]]] = {}
    for fields in found:
        for name, text in fields.items():
            lines.setdefault(name, []).append(_values(text))
    return {name: _line(combine(rows)) for name, rows in lines.items()}


def _summed(rows: Sequence[dict[bytes, bytes]]) -> dict[bytes, bytes]:
    return {name: _total([row.get(name, b"0") for row in rows]) for name in rows[0]}


def _call_figures(rows: Sequence[dict[bytes, bytes]]) -> dict[bytes, bytes]:
    figures = _summed(rows)
    calls = int(figures.get(b"calls", 0))
    figures[b"usec_per_call"] = b"%.2f" % (int(figures.get(b"usec", 0)) / calls if calls else 0)
    return figures


def _database_figures(rows: Sequence[dict[bytes, bytes]]) -> dict[bytes, bytes]:
    figures = _summed(rows)
    expires = int(figures.get(b"expires", 0))
    if b"avg_ttl" in figures:
        weighted = sum(int(row.get(b"avg_ttl", 0)) * int(row.get(b"expires", 0)) for row in rows)
        figures[b"avg_ttl"] = b"%d" % (weighted // expires if expires else 0)
    return figures


def _databases(found: Sequence[Fields]) -> Fields:
    return dict(sorted(_by_line(found, _database_figures).items(), key=lambda item: int(item[0][2:] or 0)))


def _commands(found: Sequence[Fields]) -> Fields:
    return _by_line(found, _call_figures)


def _errors(found: Sequence[Fields]) -> Fields:
    return _by_line(found, _summed)


_SECTIONS: dict[bytes, Callable[[Sequence[Fields]], Fields]] = {
    b"keyspace": _databases,
    b"commandstats": _commands,
    b"errorstats": _errors,
}


def _shard_line(shard: ShardFigures) -> tuple[bytes, bytes]:
    slots = " ".join(f"{first}-{last}" if first != last else f"{first}" for first, last in shard.ranges)
    line = f"id={shard.id},primary={shard.primary},slots={slots},keys={shard.keys}"
    return b"shard%d" % shard.index, line.encode()


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
