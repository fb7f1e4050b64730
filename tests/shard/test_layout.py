"""The plan and its folder: ports, zones, the lock, and what is found again."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard.errors import ShardError
from shard.layout import (
    PortReservation,
    create_layout,
    load_layout,
    lock_directory,
    ports_free,
    save_layout,
    zone_of,
)
from shard.settings import ClusterSettings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def reservation() -> Iterator[PortReservation]:
    held = PortReservation()
    yield held
    held.release()


def test_a_saved_plan_is_found_again_and_is_private(tmp_path: Path, reservation: PortReservation) -> None:
    layout = create_layout(ClusterSettings(), reservation)
    save_layout(tmp_path, layout)
    assert load_layout(tmp_path, ClusterSettings()) == layout
    assert stat.S_IMODE((tmp_path / "cluster.json").stat().st_mode) == 0o600
    assert [node.shard for node in layout.nodes] == [1, 2, 3, 1, 2, 3]
    assert load_layout(tmp_path / "elsewhere", ClusterSettings()) is None


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (ClusterSettings(shards=4), "with shards 3, not 4"),
        (ClusterSettings(replicas=0), "with replicas 1, not 0"),
        (ClusterSettings(host="127.0.0.2"), "with host"),
        (ClusterSettings(first_port=30001), "with first_port"),
    ],
)
def test_another_shape_than_saved_is_refused(
    tmp_path: Path, reservation: PortReservation, asked: ClusterSettings, words: str
) -> None:
    save_layout(tmp_path, create_layout(ClusterSettings(), reservation))
    with pytest.raises(ShardError, match=words):
        load_layout(tmp_path, asked)


def test_a_damaged_plan_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text('{"shards": 3')
    with pytest.raises(ShardError, match="is damaged"):
        load_layout(tmp_path, ClusterSettings())


def test_ports_are_reserved_from_others_but_not_from_the_node(reservation: PortReservation) -> None:
    layout = create_layout(ClusterSettings(), reservation)
    ports = [node.port for node in layout.nodes]
    assert len(set(ports)) == 6
    other = PortReservation()
    for port in ports:
        assert not other.take("127.0.0.1", port)
        assert ports_free("127.0.0.1", port)
        with socket.create_server(("127.0.0.1", port)), socket.create_server(("127.0.0.1", port + 10000)):
            assert not ports_free("127.0.0.1", port)


def test_a_bus_port_in_use_is_not_free(reservation: PortReservation) -> None:
    [node] = create_layout(ClusterSettings(shards=1, replicas=0), reservation).nodes
    with socket.create_server(("127.0.0.1", node.port + 10000)):
        assert not ports_free("127.0.0.1", node.port)


def test_wished_ports_are_used_or_named_when_taken(reservation: PortReservation) -> None:
    first = create_layout(ClusterSettings(), reservation).nodes[0].port
    reservation.release()
    settings = ClusterSettings(shards=1, replicas=0, first_port=first)
    with socket.create_server(("127.0.0.1", first)), pytest.raises(ShardError, match=f"port {first} .* in use"):
        create_layout(settings, reservation)
    assert create_layout(settings, reservation).nodes[0].port == first


def test_a_folder_in_use_names_the_process_that_has_it(tmp_path: Path) -> None:
    hold = (
        f"import sys, pathlib; sys.path.insert(0, {str(ROOT)!r}); from shard.layout import lock_directory; "
        f"lock = lock_directory(pathlib.Path({str(tmp_path)!r})); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ShardError, match=f"in use by process {holder.pid}:"):
            lock_directory(tmp_path)
        holder.kill()
    lock_directory(tmp_path).release()


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match=r"cannot write to .*file.* \(not a directory\): choose another folder"):
        lock_directory(tmp_path / "file" / "data")
    with pytest.raises(ShardError, match="cannot write to"):
        lock_directory(Path("/proc/ackgate"))


@given(st.integers(1, 12), st.integers(0, 4), st.integers(2, 5))
def test_no_replica_is_in_the_zone_of_its_primary(shards: int, replicas: int, zones: int) -> None:
    names = [f"zone-{number}" for number in range(zones)]
    settings = ClusterSettings(shards=shards, replicas=replicas, replication="multi-zone", zones=names)
    held = PortReservation()
    nodes = create_layout(settings, held).nodes
    held.release()
    primaries = {node.shard: zone_of(settings, node) for node in nodes if node.place == 0}
    assert all(zone_of(settings, node) != primaries[node.shard] for node in nodes if node.place > 0)
    # The primaries themselves are spread evenly.
    counts = [list(primaries.values()).count(name) for name in names]
    assert max(counts) - min(counts) <= 1


def test_the_plan_file_is_readable_by_people(tmp_path: Path, reservation: PortReservation) -> None:
    save_layout(tmp_path, create_layout(ClusterSettings(shards=1), reservation))
    assert json.loads((tmp_path / "cluster.json").read_text())["nodes"][1]["name"] == "shard-1-2"
