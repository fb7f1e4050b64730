"""The slot map: reading replies, identity over time, moves, and which node's view is believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.routing import NO_SHARD, SLOTS, SlotMap, View, choose_view
from proxy.routing.slot_map import intersect_ranges, merge_ranges, ranges_of

ASKED = ("10.0.0.9", 7000)


def node(name, *, port=7000, role=b"master", health=b"online", offset=0, host=b"10.0.0.1", **more):
    fields = {b"id": name, b"port": port, b"ip": host, b"endpoint": host, b"role": role}
    fields |= {b"replication-offset": offset, b"health": health, **{key.encode(): value for key, value in more.items()}}
    return fields


def shard(slots, *nodes, shard_id=None):
    row = {b"slots": slots, b"nodes": list(nodes)}
    return row | ({b"id": shard_id} if shard_id else {})


def flat(value):
    """A map as RESP2 shows it."""
    if isinstance(value, dict):
        return [item for key, inner in value.items() for item in (key, flat(inner))]
    return [flat(inner) for inner in value] if isinstance(value, list) else value


def two_shards(**ids):
    return [
        shard([0, 8000], node(b"a", port=1), node(b"a2", port=3, role=b"replica"), shard_id=ids.get("a")),
        shard([8001, 16383], node(b"b", port=2), shard_id=ids.get("b")),
    ]


def test_a_real_servers_two_replies_give_the_same_routes(engine):
    asked = ("127.0.0.1", engine.port)
    slots = engine.hiredis(b"CLUSTER", b"SLOTS")
    first = SlotMap.from_shards(engine.hiredis(b"CLUSTER", b"SHARDS"), asked, slots_reply=slots)
    second = SlotMap.from_slots(slots, asked)
    assert first.covered() and first.same_routes(second) and second.same_routes(first)
    (only,) = first.shards
    # This server has not learnt its own address yet: it is the one we asked.
    assert only.primary.address == asked
    assert only.primary.node_id == engine.hiredis(b"CLUSTER", b"MYID")
    assert only.id == engine.hiredis(b"CLUSTER", b"MYSHARDID")
    engine.raw(b"HELLO", b"3")
    try:
        assert SlotMap.from_shards(engine.hiredis(b"CLUSTER", b"SHARDS"), asked).same_routes(first)
        assert SlotMap.from_slots(engine.hiredis(b"CLUSTER", b"SLOTS"), asked).same_routes(first)
    finally:
        engine.raw(b"HELLO", b"2")


@pytest.mark.parametrize("form", [lambda reply: reply, flat])
def test_shards_nodes_and_slots_are_read_in_both_protocols(form):
    row = shard(
        [5, 6, 0, 2],
        node(b"a", offset=9, **{"availability-zone": b"z1"}),
        node(b"r", port=2, role=b"replica", health=b"loading"),
    )
    slot_map = SlotMap.from_shards(form([row]), ASKED)
    (only,) = slot_map.shards
    assert only.ranges == ((0, 2), (5, 6)) and only.lowest_slot == 0
    assert (only.primary.zone, only.primary.offset, only.replicas[0].health) == ("z1", 9, "loading")
    assert [slot_map.shard_of_slot[slot] for slot in (0, 2, 3, 5, 7)] == [0, 0, NO_SHARD, 0, NO_SHARD]
    assert not slot_map.covered() and slot_map.missing() == ((3, 4), (7, SLOTS - 1))
    assert slot_map.owner(5) is only and slot_map.owner(4) is None
    assert slot_map.find("10.0.0.1", 2) is only and slot_map.find("10.0.0.1", 3) is None


@pytest.mark.parametrize("unknown", [b"", b"?", None])
def test_an_unknown_endpoint_is_the_address_we_asked(unknown):
    row = shard([0, 1], node(b"a", host=unknown) | {b"ip": b""})
    assert SlotMap.from_shards([row], ASKED).shards[0].primary.host == ASKED[0]
    assert SlotMap.from_slots([[0, 1, [unknown, 7000, b"a", []]]], ASKED).shards[0].primary.host == ASKED[0]


def test_a_node_whose_name_is_not_known_yet_is_found_by_its_address():
    row = shard([0, 1], node(b"a", host=b"?") | {b"ip": b"10.0.0.7"})
    assert SlotMap.from_shards([row], ASKED).shards[0].primary.host == "10.0.0.7"


@pytest.mark.parametrize("form", [lambda reply: reply, flat])
def test_a_node_that_lost_its_memory_is_not_taken_for_the_one_we_asked(form):
    """The others remember its former id, without an address: CLUSTER SHARDS tells no port, CLUSTER SLOTS port 0."""
    gone = node(b"gone", host=b"", role=b"replica", health=b"fail")
    del gone[b"port"]
    named = gone | {b"endpoint": b"node-4", b"hostname": b"node-4"}
    present = node(b"r", port=2, role=b"replica")
    (only,) = SlotMap.from_shards(form([shard([0, 9], node(b"a"), gone, named, present)]), ASKED).shards
    assert [each.node_id for each in only.nodes] == [b"a", b"r"]
    (only,) = SlotMap.from_shards(form([shard([0, 9], gone | {b"role": b"master"}, present)]), ASKED).shards
    assert only.primary is None and [each.node_id for each in only.replicas] == [b"r"]
    slots = [[0, 9, [b"", 0, b"gone", []], [b"10.0.0.1", 2, b"r", []]]]
    (only,) = SlotMap.from_slots(form(slots), ASKED).shards
    assert only.primary is None and [each.node_id for each in only.replicas] == [b"r"]


@pytest.mark.parametrize("reply", [[[b"slots"]], [1], [{b"slots": [0], b"nodes": []}]])
def test_another_reply_is_refused(reply):
    with pytest.raises(ValueError, match="CLUSTER S"):
        SlotMap.from_shards(reply, ASKED)
    with pytest.raises(ValueError, match="CLUSTER S"):
        SlotMap.from_slots(reply, ASKED)


def test_of_two_primaries_the_one_that_serves_is_taken():
    old = node(b"old", port=1, health=b"fail", offset=99)
    new = node(b"new", port=2, offset=5)
    assert SlotMap.from_shards([shard([0, 9], old, new)], ASKED).shards[0].primary.node_id == b"new"
    back = node(b"old", port=1, offset=99)
    slots = [[0, 9, [b"10.0.0.1", 2, b"new", []]]]
    (only,) = SlotMap.from_shards([shard([0, 9], back, new)], ASKED, slots_reply=slots).shards
    assert only.primary.node_id == b"new"
    assert [(each.node_id, each.role) for each in only.replicas] == [(b"old", "replica")]


@pytest.mark.parametrize("ids", [{}, {"a": b"A" * 40, "b": b"B" * 40}])
def test_a_shard_keeps_its_index_over_failover_and_reordering(ids):
    first = SlotMap.from_shards(two_shards(**ids), ASKED)
    assert [(each.index, each.primary.node_id) for each in first.shards] == [(0, b"a"), (1, b"b")]
    # b now has the lowest slots, and a2 took over from a, which is gone.
    rows = [
        shard([0, 100], node(b"b", port=2), shard_id=ids.get("b")),
        shard([101, 16383], node(b"a2", port=3), shard_id=ids.get("a")),
    ]
    second = SlotMap.from_shards(rows, ASKED, first)
    assert [(each.index, each.primary.node_id) for each in second.shards] == [(0, b"a2"), (1, b"b")]
    assert [each.id for each in second.shards] == [each.id for each in first.shards]
    assert second.version == first.version + 1


def test_an_index_is_never_given_to_another_shard():
    first = SlotMap.from_shards(two_shards(), ASKED)
    without = SlotMap.from_shards([shard([0, 16383], node(b"a", port=1))], ASKED, first)
    third = SlotMap.from_shards([*two_shards()[:1], shard([8001, 16383], node(b"c", port=9))], ASKED, without)
    assert [(each.index, each.primary.node_id) for each in third.shards] == [(0, b"a"), (2, b"c")]
    assert third.shard(1) is None


def test_a_replica_that_changed_sides_does_not_change_identities():
    rows = two_shards()
    first = SlotMap.from_shards(rows, ASKED)
    rows[1][b"nodes"].insert(0, rows[0][b"nodes"].pop())
    second = SlotMap.from_shards(rows, ASKED, first)
    assert [(each.index, each.primary.node_id) for each in second.shards] == [(0, b"a"), (1, b"b")]


def test_moved_to_a_known_primary_moves_one_slot():
    before = SlotMap.from_shards(two_shards(), ASKED)
    after = before.with_moved(5, "10.0.0.1", 2)
    assert after.owner(5).index == 1 and after.owner(4).index == 0 and after.owner(6).index == 0
    assert after.shards[1].ranges == ((5, 5), (8001, 16383)) and after.version == before.version + 1
    assert before.owner(5).index == 0 and after.covered()


def test_moved_to_a_replica_means_it_was_promoted():
    after = SlotMap.from_shards(two_shards(), ASKED).with_moved(5, "10.0.0.1", 3)
    (first, _) = after.shards
    assert (first.index, first.primary.node_id, first.primary.role) == (0, b"a2", "primary")
    assert [each.node_id for each in first.replicas] == [b"a"] and first.ranges == ((0, 8000),)


def test_moved_to_an_unknown_address_makes_a_provisional_shard_that_discovery_fills_in():
    after = SlotMap.from_shards(two_shards(), ASKED).with_moved(7, "10.0.0.1", 77)
    assert after.owner(7).index == 2 and after.owner(7).primary.address == ("10.0.0.1", 77)
    rows = [*two_shards(), shard([7, 7], node(b"c", port=77), shard_id=b"C" * 40)]
    rows[0][b"slots"] = [0, 6, 8, 8000]
    learnt = SlotMap.from_shards(rows, ASKED, after)
    assert (learnt.owner(7).index, learnt.owner(7).id, learnt.owner(7).primary.node_id) == (2, b"C" * 40, b"c")


# ---- views -----------------------------------------------------------------------------------------------------------


def view_of(name, epoch, rows, previous=None):
    return View(name, epoch, SlotMap.from_shards(rows, ASKED, previous))


def failed_over():
    rows = two_shards()
    rows[0] = shard([0, 8000], node(b"a2", port=3))
    return rows


def test_the_majority_is_believed_whatever_epoch_a_single_node_claims():
    views = [view_of(b"a", 1, failed_over()), view_of(b"b", 1, failed_over()), view_of(b"lost", 99, two_shards())]
    assert choose_view(views).owner(0).primary.node_id == b"a2"


def test_a_node_asked_twice_has_one_voice():
    views = [view_of(b"lost", 9, two_shards())] * 3 + [view_of(b"a", 1, failed_over()), view_of(b"b", 1, failed_over())]
    assert choose_view(views).owner(0).primary.node_id == b"a2"


def test_without_a_majority_the_higher_epoch_wins_at_the_start_and_nothing_changes_later():
    views = [view_of(b"a", 1, two_shards()), view_of(b"b", 2, failed_over())]
    assert choose_view(views) is views[1].map
    third = view_of(b"c", 1, [shard([0, 16383], node(b"c"))])
    assert choose_view(views, third.map) is None


def test_the_only_node_that_answers_is_believed_unless_it_is_behind():
    before, after = view_of(b"a", 1, two_shards()), view_of(b"a2", 2, failed_over())
    assert choose_view([before]) is before.map
    assert choose_view([after], before.map, previous_epoch=1) is after.map
    assert choose_view([before], after.map) is before.map
    assert choose_view([before], after.map, previous_epoch=2) is None
    assert choose_view([before, before._replace(node_id=b"a2")], after.map, previous_epoch=2) is None
    assert choose_view([]) is None


def test_a_cluster_made_anew_is_believed_though_its_epochs_start_again():
    anew = view_of(b"x", 0, [shard([0, 16383], node(b"x"))])
    assert choose_view([anew], view_of(b"a", 9, two_shards()).map, previous_epoch=9) is anew.map


def test_health_does_not_divide_the_voices():
    sick = two_shards()
    sick[0][b"nodes"][1][b"health"] = b"fail"
    views = [view_of(b"a", 1, sick), view_of(b"b", 1, two_shards()), view_of(b"c", 5, failed_over())]
    assert choose_view(views) is views[1].map


# ---- ranges ----------------------------------------------------------------------------------------------------------

slots = st.frozensets(st.integers(0, 40))


def expand(ranges):
    return {slot for first, last in ranges for slot in range(first, last + 1)}


@given(slots, slots)
def test_ranges_are_sets_of_slots(left, right):
    assert expand(ranges_of(left)) == left
    assert expand(intersect_ranges(ranges_of(left), ranges_of(right))) == left & right
    assert merge_ranges((*ranges_of(left), *ranges_of(right))) == ranges_of(left | right)
