"""SCAN over shards: complete whatever moves, on simulated shards and on a real one."""

from __future__ import annotations

import random
import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.codec.reply import Error, decode
from proxy.routing import DONE, SLOTS, BadCursor, Cursor, Node, NotServed, Scan, Shard, SlotMap, agreed_ranges
from proxy.routing.slot_map import merge_ranges

# Slots in use; the rest follow their left neighbour.
USED = [0, 1, 2, 3, 100, 101, 200, 5000, 5001, 5002, 9000, 16382, 16383]
SHARDS = 3
BUCKETS = 50


class Cluster:
    """Shards with keys in slots, that can be scanned as an engine is, and changed in between."""

    def __init__(self, rng: random.Random, slotted: bool) -> None:
        self.rng = rng
        self.slotted = slotted
        self.owner = {slot: rng.randrange(SHARDS) for slot in USED}
        self.keys = {slot: [f"{slot}:{n}" for n in range(rng.randrange(5))] for slot in USED}
        self.seed = [rng.random() for _ in range(SHARDS)]
        self.version = 0

    def ranges(self, shard: int):
        edges = [*USED, SLOTS]
        return merge_ranges((first, after - 1) for first, after in pairwise(edges) if self.owner[first] == shard)

    def map(self) -> SlotMap:
        self.version += 1
        shards = [
            Shard(at, b"shard%d" % at, Node("h", at, node_id=self.node_id(at)), (), self.ranges(at))
            for at in range(SHARDS)
        ]
        return SlotMap(tuple(shards), self.version, SHARDS)

    def node_id(self, shard: int) -> bytes:
        return repr(self.seed[shard]).encode()

    def disturb(self) -> None:
        """A slot moves, or a replica with another hash seed takes over."""
        if self.rng.random() < 0.7:
            self.owner[self.rng.choice(USED)] = self.rng.randrange(SHARDS)
        else:
            self.seed[self.rng.randrange(SHARDS)] = self.rng.random()

    def place(self, shard: int, name: str) -> int:
        """The bucket of a key on one node: it does not shift when other keys come and go."""
        return zlib.crc32(f"{self.seed[shard]}{name}".encode()) % BUCKETS

    def scan(self, shard: int, cursor: int) -> tuple[int, list[str]]:
        return self.scan_slotted(shard, cursor) if self.slotted else self.scan_flat(shard, cursor)

    def scan_flat(self, shard: int, cursor: int) -> tuple[int, list[str]]:
        names = [key for slot in USED if self.owner[slot] == shard for key in self.keys[slot]]
        end = cursor + self.rng.randrange(1, 30)
        found = [name for name in names if cursor <= self.place(shard, name) < end]
        return (end if end < BUCKETS else 0), found

    def scan_slotted(self, shard: int, cursor: int) -> tuple[int, list[str]]:
        found: list[str] = []
        for _ in range(self.rng.randrange(1, 4)):
            slot, bucket = cursor & 16383, cursor >> 14
            if self.owner.get(slot) == shard:
                end = bucket + self.rng.randrange(1, 30)
                found += [key for key in self.keys[slot] if bucket <= self.place(shard, key) < end]
                if end < BUCKETS:
                    cursor = end << 14 | slot
                    continue
            later = [s for s in USED if s > slot and self.owner[s] == shard and self.keys[s]]
            if not later:
                return 0, found
            cursor = later[0]
        return cursor, found


def everything(cluster: Cluster) -> set[str]:
    return {key for keys in cluster.keys.values() for key in keys}


def iterate(cluster: Cluster, scan: Scan, disturbances: int, stale: bool = False) -> list[str]:
    """A whole iteration, each step by a proxy that knows nothing but the cursor."""
    found: list[str] = []
    text = b"0"
    slot_map = cluster.map()
    for _ in range(5000):
        if not stale or cluster.rng.random() < 0.5:
            slot_map = cluster.map()
        step = scan.next_step(slot_map, Cursor.decode(text))
        if slot_map.shard(step.shard).primary.node_id != cluster.node_id(step.shard):
            slot_map = cluster.map()  # the old primary is gone and does not answer
            continue
        before = cluster.ranges(step.shard)
        returned, keys = cluster.scan(step.shard, step.engine_cursor)
        found += keys
        if disturbances and cluster.rng.random() < 0.3:
            disturbances -= 1
            cluster.disturb()
        owned = agreed_ranges(before, cluster.ranges(step.shard)) if stale else None
        cursor = scan.after(slot_map if stale else cluster.map(), step, returned, owned)
        text = cursor.encode()
        if cursor == DONE:
            assert text == b"0"
            return found
        assert text != b"0"
    raise AssertionError("the iteration does not end")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.integers(0, 12))
def test_every_key_is_found_whatever_moves(seed, slotted, disturbances):
    cluster = Cluster(random.Random(seed), slotted)
    expected = everything(cluster)
    assert set(iterate(cluster, Scan(positional=slotted), disturbances)) == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 12))
def test_what_the_shard_says_it_owns_makes_up_for_a_stale_map(seed, disturbances):
    cluster = Cluster(random.Random(seed), slotted=True)
    expected = everything(cluster)
    assert set(iterate(cluster, Scan(positional=True), disturbances, stale=True)) == expected


@pytest.mark.parametrize("seed", range(20))
def test_anchored_reads_each_shard_once_while_nothing_changes(seed):
    cluster = Cluster(random.Random(seed), slotted=False)
    found = iterate(cluster, Scan(positional=False), 0)
    assert sorted(found) == sorted(everything(cluster))


def test_the_simulation_can_lose_keys():
    """The check above is worth something: shard after shard by index, without position, does lose."""
    lost = 0
    for seed in range(60):
        cluster = Cluster(random.Random(seed), slotted=True)
        expected, found = everything(cluster), set()
        for shard in range(SHARDS):
            cursor = 0
            while True:
                cursor, keys = cluster.scan(shard, cursor)
                found.update(keys)
                cluster.disturb()
                if cursor == 0:
                    break
        lost += found != expected
    assert lost > 10


def test_a_cursor_of_another_node_starts_its_slot_again_unless_cursors_are_portable():
    cluster = Cluster(random.Random(1), slotted=True)
    cluster.owner = dict.fromkeys(USED, 0)
    for portable, expected in ((False, 5000), (True, 7 << 14 | 5000)):
        scan = Scan(positional=True, portable=portable)
        step = scan.next_step(cluster.map(), Cursor(5000))
        cursor = scan.after(cluster.map(), step, 7 << 14 | 5000)
        assert scan.next_step(cluster.map(), cursor).engine_cursor == 7 << 14 | 5000
        cluster.seed[0] += 1
        assert scan.next_step(cluster.map(), cursor).engine_cursor == expected


def test_the_life_given_by_the_caller_counts():
    cluster = Cluster(random.Random(1), slotted=True)
    runs = {0: b"run1", 1: b"run1", 2: b"run1"}
    scan = Scan(positional=True, life=lambda shard: runs[shard.index])
    step = scan.next_step(cluster.map(), Cursor(0))
    cursor = scan.after(cluster.map(), step, 3 << 14)
    runs[step.shard] = b"run2"
    assert scan.next_step(cluster.map(), cursor).engine_cursor == 0


def test_a_slot_nobody_serves_stops_the_iteration_instead_of_losing_its_keys():
    one = Shard(0, b"s", Node("h", 1), (), ((0, 99), (200, SLOTS - 1)))
    holed = SlotMap((one,), 1, 1)
    scan = Scan(positional=True)
    cursor = scan.after(holed, scan.next_step(holed, DONE), 300)
    with pytest.raises(NotServed) as caught:
        scan.next_step(holed, cursor)
    assert caught.value.slot == 100
    anchored = Scan(positional=False)
    cursor = anchored.after(holed, anchored.next_step(holed, DONE), 0)
    with pytest.raises(NotServed):
        anchored.next_step(holed, cursor)


def test_a_node_that_lost_slot_zero_meanwhile_does_not_end_the_iteration():
    cluster = Cluster(random.Random(3), slotted=True)
    for scan in (Scan(positional=True), Scan(positional=False)):
        cluster.owner[0] = 0
        step = scan.next_step(cluster.map(), DONE)
        cluster.owner[0] = 1
        cursor = scan.after(cluster.map(), step, 0)
        assert cursor.encode() != b"0" and cursor.slot == 0
        assert scan.next_step(cluster.map(), cursor).shard == 1


@given(st.integers(0, SLOTS - 1), st.integers(0, 4095), st.booleans(), st.integers(0, 2**37 - 1))
def test_cursors_survive_the_client(slot, mark, changed, engine):
    cursor = Cursor(slot, mark, changed, engine)
    assert Cursor.decode(cursor.encode()) == cursor
    if engine < 1 << 26:
        assert int(cursor.encode()) < 1 << 53


CURSORS = [
    b"", b"x", b"1x", b"-1", b"-5", b"1 ", b"0x1", b" 1", b"+1", b"\t1", b"01", b"00", b"1\x00", b"1.5",
    b"18446744073709551615", b"18446744073709551616", b"9" * 30, b"0" * 30 + b"1",
]  # fmt: skip


@pytest.mark.parametrize("text", CURSORS)
def test_cursors_are_refused_where_the_engine_refuses_them(engine, text):
    reply = engine.raw(b"SCAN", text)
    if isinstance(decode(reply), Error):
        with pytest.raises(BadCursor) as caught:
            Cursor.decode(text)
        assert caught.value.frame == reply
    else:
        Cursor.decode(text)


def test_a_real_engines_cursors_are_positions_by_slot(engine):
    """What the positional way rests on."""
    engine.call("FLUSHALL")
    keys = {b"key:%d" % at for at in range(300)} | {b"{tag}%d" % at for at in range(300)}
    for key in keys:
        engine.call("SET", key, "v")
    slot_map = SlotMap.from_slots(engine.hiredis(b"CLUSTER", b"SLOTS"), ("127.0.0.1", engine.port))
    scan, found, cursor, slots = Scan(positional=True), set(), DONE, []
    while True:
        step = scan.next_step(slot_map, cursor)
        returned, names = engine.call("SCAN", step.engine_cursor, "COUNT", 7)
        found.update(names)
        cursor = scan.after(slot_map, step, int(returned))
        if cursor == DONE:
            break
        slots.append(cursor.slot)
        assert int(cursor.encode()) < 1 << 53
    assert found == keys and slots == sorted(slots) and len(set(slots)) > 30
    # A bare slot number is a cursor: it begins at that slot.
    slot = engine.call("CLUSTER", "KEYSLOT", "{tag}")
    _, names = engine.call("SCAN", slot, "COUNT", 1)
    assert names and all(engine.call("CLUSTER", "KEYSLOT", name) >= slot for name in names)
    assert {name for name in names if name.startswith(b"{tag}")}


def test_agreed_ranges_are_what_was_owned_all_along():
    assert agreed_ranges(((0, 10), (20, 30)), ((5, 25),)) == ((5, 10), (20, 25))
