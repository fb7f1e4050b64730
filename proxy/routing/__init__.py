"""Routing: which shards a command goes to, and how their replies become one.

What lives here: the command table made from the live server's ``COMMAND`` reply, key extraction by the engine's key
specs, the slot map, request policies (splitting), response policies (aggregators, merges) and SCAN's cursors.  All of
it is pure: values in, values out, bytes everywhere, and a *frame* is one raw RESP reply. What may not: sockets,
tasks, clocks, the state of a session, or any other room than ``codec``.

A new policy is one row and one function in :mod:`proxy.routing.aggregate`; a command that needs its own merge is one
row and one function in :mod:`proxy.routing.merges`.
"""

from proxy.routing.aggregate import POLICIES, aggregate, keyless_default
from proxy.routing.command_table import (
    Command,
    CommandTable,
    KeySpec,
    check_arity,
    lookup_error,
    unknown_command_error,
    unknown_subcommand_error,
    wrong_arity_error,
)
from proxy.routing.info import ShardFigures, chosen_sections, merge_info, shard_sections
from proxy.routing.key_specs import Keys, extract, first_slot, slots_of
from proxy.routing.merges import MERGES, choose_shard
from proxy.routing.scan import DONE, BadCursor, Cursor, NotServed, Scan, Step, agreed_ranges
from proxy.routing.slot_map import NO_SHARD, SLOTS, Node, Shard, SlotMap, View, choose_view
from proxy.routing.split import Part, Split, split
from proxy.routing.splitter import splitter, whole

__all__ = [
    "DONE",
    "MERGES",
    "NO_SHARD",
    "POLICIES",
    "SLOTS",
    "BadCursor",
    "Command",
    "CommandTable",
    "Cursor",
    "KeySpec",
    "Keys",
    "Node",
    "NotServed",
    "Part",
    "Scan",
    "Shard",
    "ShardFigures",
    "SlotMap",
    "Split",
    "Step",
    "View",
    "aggregate",
    "agreed_ranges",
    "check_arity",
    "choose_shard",
    "choose_view",
    "chosen_sections",
    "extract",
    "first_slot",
    "keyless_default",
    "lookup_error",
    "merge_info",
    "shard_sections",
    "slots_of",
    "split",
    "splitter",
    "unknown_command_error",
    "unknown_subcommand_error",
    "whole",
    "wrong_arity_error",
]
