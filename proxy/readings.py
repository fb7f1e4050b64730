"""Readings: what the rooms of one server counted, put together for a scrape.

What lives here: where each figure is to be found.  What may not: what figures mean and how they are shown
(``proxy.observe``), and any that is kept for the metrics alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from proxy.observe.commands import command_figures
from proxy.observe.figures import CommandFigures, Counters, NodeFigures, ShardFigures
from proxy.observe.nodes import node_figures
from proxy.observe.pulse import Seen
from proxy.routing.slot_map import NO_SHARD, Shard
from shard.client import format_address

if TYPE_CHECKING:
    from proxy.server import Server


class Readings:
    """Of one server (``proxy.observe.figures.Figures``)."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def counters(self) -> Counters:
        """Figures of the whole proxy."""
        server = self._server
        plane, counted = server.plane, server.plane.counters
        redirects = server.redirects.counts
        held, held_bytes = server.redirects.held
        return {
            "clients_open": len(plane.clients),
            "clients_limit": plane.limits.maxclients,
            "clients_accepted": counted.accepted,
            "clients_refused": counted.refused - server.slow_clients,
            "clients_closed_slow": server.slow_clients,
            "draining": int(server.draining.begun),
            "commands": counted.commands,
            "commands_control": server.router.calls,
            "protocol_errors": counted.protocol_errors,
            "subscribers_cut": counted.subscribers_cut,
            "subscriptions_shared": server.hub.size,
            "subscription_links": server.hub.open_links,
            "messages_delivered": server.hub.delivered,
            "bytes_in": counted.bytes_in,
            "bytes_out": counted.bytes_out,
            "shard_bytes_in": counted.shard_bytes_in,
            "shard_bytes_out": counted.shard_bytes_out,
            "lanes_open": sum(1 for _ in server.lanes.all_connected()),
            "lane_connects": server.lanes.connector.connects,
            "lane_losses": counted.lane_losses,
            "leased_open": server.lanes.leased,
            "blocked": len(server.blocking.blocks),
            "moved": redirects["moved"],
            "ask": redirects["ask"],
            "tryagain": redirects["tryagain"],
            "splits": counted.splits + server.router.sender.counts["splits"],
            "fanouts": server.router.sender.counts["fanouts"],
            "outcome_unknown": redirects["outcome_unknown"],
            "refused": server.router.refused,
            "held": held,
            "held_bytes": held_bytes,
            "hold_fill": server.redirects.fill,
            "holds": redirects["holds"],
            "hold_timeouts": redirects["hold_timeouts"],
            "waits_open": server.acks.open - server.concerns.open,
            "concerns_open": server.concerns.open,
            "ack_rounds": server.acks.rounds,
            "acks_unconfirmed": server.acks.unconfirmed,
            "markers_refused": server.acks.markers_refused,
            "markers_raised": server.acks.markers_raised,
            "waits_alone": server.acks.alone,
            "identities": sum(not identity.own for identity in server.lanes.sets),
            "tracking": len(server.lanes.greetings),
            "logins_refused": server.brake.failures,
            "users_healed": server.roster.healed,
            "users_differ": server.roster.differing,
            "paused": int(server.pausing.present().mode),
            "paused_seconds": server.pausing.lasted,
            "parked": len(server.pausing.parked),
            "pauses": server.pausing.pauses,
            "peers": len(server.peers.peers),
            "peer_messages_refused": server.peers.refused,
            "primary_changes": server.pulse.changes,
            **self._of_the_map(),
        }

    def _of_the_map(self) -> Counters:
        cluster = self._server.cluster
        versions: dict[str, int] = {}
        for watch in cluster.nodes.values():
            if watch.version:
                name = f"{watch.engine} {watch.version}"
                versions[name] = versions.get(name, 0) + 1
        return {
            "slot_map_version": cluster.map.version,
            "slot_map_age": cluster.map_age,
            "slot_map_changed": cluster.changed_at,
            "slots_covered": sum(1 for index in cluster.map.shard_of_slot if index != NO_SHARD),
            "discoveries": cluster.discoveries,
            "discovery_failures": cluster.failures,
            "ready": int(self._server.ready),
            "engine_versions": versions,
        }

    def shard_figures(self) -> list[ShardFigures]:
        """Figures of each shard."""
        return [self._of_shard(shard) for shard in self._server.cluster.map.shards]

    def _of_shard(self, shard: Shard) -> ShardFigures:
        cluster, plane, index = self._server.cluster, self._server.plane, shard.index
        primary = cluster.watch_of(shard.primary) if shard.primary is not None else None
        lanes = self._server.lanes.connected(index)
        busy = [lane for lane in lanes if not lane.owner.patience]  # the others block because they are asked to
        lags = {format_address(*node.address): cluster.lag_of(shard.primary, node) for node in shard.replicas}
        traffic = plane.traffic_of(index)
        return {
            "shard": shard.id.decode(),
            "up": int(primary is not None and primary.alive and self._server.lanes.base[index].attached),
            "slots": sum(last - first + 1 for first, last in shard.ranges),
            "replicas": len(shard.replicas),
            "replicas_online": cluster.replicas_alive(index),
            "offset": primary.offset if primary is not None else 0,
            "lag_bytes": {address: lag.size for address, lag in lags.items() if lag is not None},
            "lag_seconds": {address: lag.seconds for address, lag in lags.items() if lag is not None},
            "outstanding": sum(lane.outstanding for lane in lanes),
            "oldest_seconds": max((plane.lane_age(lane) for lane in busy), default=0.0),
            "queued_bytes": sum(lane.queued for lane in lanes),
            "lanes_open": len(lanes),
            "lane_connects": traffic.connects,
            "lane_losses": traffic.losses,
            "bytes_in": traffic.bytes_in,
            "bytes_out": traffic.bytes_out,
            "incarnations": self._server.pulse.lives.get(shard.id.decode(), 0),
            "waitaof_trusted": int(not self._server.trust.early(index)),
        }

    def node_figures(self) -> list[NodeFigures]:
        """Figures of each node of the slot map."""
        cluster = self._server.cluster
        found = []
        for shard in cluster.map.shards:
            for node in shard.nodes:
                watch = cluster.watch_of(node)
                if watch is not None:
                    found.append(node_figures(watch, shard.id.decode()))
        return found

    def command_figures(self) -> CommandFigures:
        """What was counted of commands."""
        server = self._server

        def name(command_id: int) -> str | None:
            command = server.router.table.by_id(command_id)
            return command.name.decode() if command is not None else None

        plane = server.plane
        return command_figures(plane.tally, server.steps.at_shard, plane.split_parts, server.router.sender.widths, name)

    def shards_seen(self) -> Iterator[Seen]:
        """What the pulse looks at."""
        server = self._server
        for index in server.cluster.serving():
            shard = server.cluster.shard(index)
            if shard is None:
                continue
            up = server.lanes.base[index].attached or server.lanes.on_hold(index)
            life = server.acks.incarnations.of(shard.primary.node_id.decode()) if shard.primary is not None else None
            yield Seen(shard.id.decode(), up, life)
