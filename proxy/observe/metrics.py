"""Metric families, built at scrape time from the figures the rooms keep.

What lives here: the names, help texts and labels of everything under ``/metrics``, and the shape of the figures
behind them (``Counters``, ``ShardFigures``). What may not: counting. The data path adds to plain integers of its own;
they are read when somebody scrapes, so a figure costs the data path one addition and nothing else. The exceptions
are what only a histogram can keep: durations, of WAITs, of rounds and of the few commands that are timed, and how many
waited for a round.

Names and types follow https://prometheus.io/docs/practices/naming/. No label ever carries a key, a value, a user's
name or a password.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal, Protocol, TypedDict

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy import __version__


class Counters(TypedDict, total=False):
    """Figures of the whole proxy since its start. A key that is missing counts as 0.

    Clients and commands:
      ``clients_open`` connections now; ``clients_accepted``, ``clients_refused`` (maxclients, no descriptors left),
      ``clients_closed_slow`` (did not read their replies); ``commands`` requests parsed; ``commands_control`` those
      that went through control; ``protocol_errors``; ``bytes_in`` /
      ``bytes_out`` between clients and proxy.
    Subscriptions:
      ``subscribers_cut`` closed because their messages piled up; ``subscriptions_shared`` channels and patterns
      subscribed at nodes now, each for all who want it; ``subscription_links`` connections that carry them;
      ``messages_delivered`` to clients.
    Lanes (all shards together; by shard in ``ShardFigures``):
      ``shard_bytes_in`` / ``shard_bytes_out`` bytes read from / written to shards; ``lanes_open``, ``lane_connects``,
      ``lane_losses``; ``leased_open``; ``blocked`` clients that block on one of them now; ``identities`` that have
      lanes now; ``tracking`` clients that have their keys tracked.
    Users:
      ``logins_refused`` wrong passwords; ``users_healed`` ACL users given to nodes that lacked them; ``users_differ``
      nodes whose users are not those of most others now.
    CLIENT PAUSE and other proxies:
      ``paused`` now: 0 nothing, 1 writes, 2 all; ``parked`` commands that wait for the end; ``pauses`` begun; ``peers``
      other proxies that are heard; ``peer_messages_refused`` that were not sealed with our secret, or not in time.
    Routing:
      ``moved``, ``ask``, ``tryagain`` redirections followed; ``splits`` multi-key commands split by slot; ``fanouts``
      commands sent to several shards; ``outcome_unknown`` writes answered with "outcome unknown"; ``refused``
      commands refused as dangerous or not supported yet.
    Holds:
      ``held`` commands held now; ``held_bytes`` now; ``holds`` commands ever held; ``hold_timeouts`` holds that ended
      in an error.
    Acks:
      ``waits_open`` WAIT and WAITAOF being waited for now; ``concerns_open`` questions under way for writes whose
      replies are kept back; ``ack_rounds`` rounds put to shards;
      ``acks_unconfirmed`` of them answered without a number, because a primary's life had ended;
      ``markers_refused`` that shards did not take, or not in time; ``markers_raised`` put on a lane that carried one
      already, all being taken; ``waits_alone`` that did not go the usual way, by rounds shared with others (slots had
      moved, or a proof was missing).
    Topology:
      ``slot_map_version``; ``slots_covered`` slots with a primary, of 16384; ``discoveries``; ``discovery_failures``;
      ``ready`` 0 or 1; ``engine_versions`` number of nodes by engine and version, as ``{"valkey 9.1.2": 6}``.
    """

    clients_open: int
    clients_accepted: int
    clients_refused: int
    clients_closed_slow: int
    commands: int
    commands_control: int
    protocol_errors: int
    subscribers_cut: int
    subscriptions_shared: int
    subscription_links: int
    messages_delivered: int
    bytes_in: int
    bytes_out: int
    shard_bytes_in: int
    shard_bytes_out: int
    lanes_open: int
    lane_connects: int
    lane_losses: int
    leased_open: int
    blocked: int
    identities: int
    tracking: int
    logins_refused: int
    users_healed: int
    users_differ: int
    paused: int
    parked: int
    pauses: int
    peers: int
    peer_messages_refused: int
    moved: int
    ask: int
    tryagain: int
    splits: int
    fanouts: int
    outcome_unknown: int
    refused: int
    held: int
    held_bytes: int
    holds: int
    hold_timeouts: int
    waits_open: int
    concerns_open: int
    ack_rounds: int
    acks_unconfirmed: int
    markers_refused: int
    markers_raised: int
    waits_alone: int
    slot_map_version: int
    slots_covered: int
    discoveries: int
    discovery_failures: int
    ready: int
    engine_versions: dict[str, int]


class _ShardId(TypedDict):
    shard: str


class ShardFigures(_ShardId, total=False):
    """Figures of one shard. ``shard`` is its id, the label; a key that is missing leaves its sample out.

    ``up`` 1 when its primary answers; ``slots``; ``replicas_online``; ``offset`` the primary's replication offset in
    bytes; ``lag_bytes`` and ``lag_seconds`` by replica address, how far it is behind; ``outstanding`` commands sent and
    not answered; ``oldest_seconds`` age of the oldest of them; ``lanes_open``; ``lane_losses``; ``bytes_in`` /
    ``bytes_out`` read from / written to it; ``incarnations`` how often its primary began a new life;
    ``waitaof_trusted`` 1 when its WAITAOF can be believed, else 0.
    """

    up: int
    slots: int
    replicas_online: int
    offset: int
    lag_bytes: dict[str, int]
    lag_seconds: dict[str, float]
    outstanding: int
    oldest_seconds: float
    lanes_open: int
    lane_losses: int
    bytes_in: int
    bytes_out: int
    incarnations: int
    waitaof_trusted: int


WaitCommand = Literal["wait", "waitaof"]
ConcernResult = Literal["reached", "deadline", "passed", "refused", "unconfirmed"]
"""``deadline`` and ``refused`` answered an error, ``passed`` the reply although one of the two was met."""
WaitResult = Literal["reached", "deadline", "unconfirmed", "refused", "gone"]
"""``reached`` as many as asked; ``deadline`` fewer, at the timeout; ``unconfirmed`` a life had ended, so there was no
number; ``refused`` an error; ``gone`` the client left."""
SwitchoverResult = Literal["done", "incomplete", "rolled_back"]
"""``incomplete``: the new primary leads, and something behind that is not as it should be."""
StepName = Literal["dispatch", "execute", "relay", "replicate", "persist"]

_WAIT_COMMANDS: Final[tuple[WaitCommand, ...]] = ("wait", "waitaof")
_CONCERN_RESULTS: Final[tuple[ConcernResult, ...]] = ("reached", "deadline", "passed", "refused", "unconfirmed")
_WAIT_RESULTS: Final[tuple[WaitResult, ...]] = ("reached", "deadline", "unconfirmed", "refused", "gone")
_SWITCHOVER_RESULTS: Final[tuple[SwitchoverResult, ...]] = ("done", "incomplete", "rolled_back")
_SWITCHOVER_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
MOST_CHILDREN: Final = 64  # counters found without asking for their labels
_STEPS: Final[tuple[StepName, ...]] = ("dispatch", "execute", "relay", "replicate", "persist")
_SHORT: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
# From a relay on an idle machine (20 us) to a replica that is stuck.
_STEP_BUCKETS: Final = (0.00002, 0.00005, 0.0001, *_SHORT, 1.0, 2.5, 9.99)
_WAITER_BUCKETS: Final = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
MANY_REPLICAS: Final = 5  # achieved replicas from which on they are counted together
# From the fastest acknowledgment measured on loopback (0.3 ms) to the timeouts people give.
_WAIT_BUCKETS: Final = (*_SHORT, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_GAUGES: Final[tuple[tuple[str, str, str], ...]] = (
    ("clients_open", "clients_open", "Client connections now."),
    ("lanes_open", "lanes_open", "Connections to shards now."),
    ("leased_open", "leased_lanes_open", "Leased lanes now."),
    ("blocked", "blocked_clients", "Clients that block now (BLPOP, XREAD BLOCK ...), each on a leased lane."),
    ("identities", "identities", "Combinations of user, database and protocol that have lanes now."),
    ("tracking", "tracking_clients", "Clients now that have their keys tracked, on lanes of their own."),
    ("users_differ", "nodes_with_differing_users", "Nodes whose ACL users are not those of most others."),
    ("paused", "paused", "CLIENT PAUSE now: 0 nothing is postponed, 1 writes, 2 everything."),
    ("parked", "parked_commands", "Commands that wait for the end of a pause now."),
    ("peers", "peers", "Other proxies in front of the cluster that are heard now."),
    ("subscriptions_shared", "shared_subscriptions", "Channels and patterns subscribed at nodes now."),
    ("subscription_links", "subscription_links_open", "Connections to nodes now that carry subscriptions."),
    ("held", "held_commands", "Commands held now, because their slots have no primary."),
    ("held_bytes", "held_bytes", "Bytes of requests held now."),
    ("waits_open", "waits_open", "WAIT and WAITAOF being waited for now."),
    ("concerns_open", "concern_questions_open", "Questions under way for writes whose replies are kept back."),
    ("slot_map_version", "slot_map_version", "Version of the slot map; raised whenever it changes."),
    ("slots_covered", "slots_covered", "Slots that have a primary, of 16384."),
    ("ready", "ready", "1 when every slot has a primary that answers."),
)
_COUNTERS: Final[tuple[tuple[str, str, str], ...]] = (
    ("clients_accepted", "clients_accepted", "Client connections accepted."),
    ("clients_refused", "clients_refused", "Client connections refused: maxclients reached or no descriptors left."),
    (
        "clients_closed_slow",
        "clients_closed_slow",
        "Client connections closed because they did not read their replies.",
    ),
    ("commands", "commands", "Commands received from clients."),
    ("commands_control", "commands_control", "Commands that took the way through control, not the plain one."),
    ("protocol_errors", "protocol_errors", "Client connections closed for a protocol error."),
    (
        "subscribers_cut",
        "subscribers_cut",
        "Client connections with subscriptions closed because they did not read their messages.",
    ),
    ("messages_delivered", "messages_delivered", "Messages of channels handed to clients."),
    ("bytes_in", "client_received_bytes", "Bytes received from clients."),
    ("bytes_out", "client_sent_bytes", "Bytes sent to clients."),
    ("shard_bytes_in", "lanes_received_bytes", "Bytes received from all shards."),
    ("shard_bytes_out", "lanes_sent_bytes", "Bytes sent to all shards."),
    ("lane_connects", "lane_connects", "Connections to shards made."),
    ("lane_losses", "lane_losses", "Connections to shards lost."),
    ("splits", "splits", "Multi-key commands split by slot."),
    ("fanouts", "fanouts", "Commands sent to several shards."),
    ("outcome_unknown", "outcome_unknown", "Writes answered with an error because their outcome is unknown."),
    ("refused", "refused_commands", "Commands refused: dangerous, or not supported yet."),
    ("holds", "holds", "Commands ever held."),
    ("hold_timeouts", "hold_timeouts", "Holds that ended in an error, at their deadline."),
    ("ack_rounds", "ack_rounds", "Rounds of acknowledgments put to shards."),
    (
        "acks_unconfirmed",
        "acks_unconfirmed",
        "WAIT and WAITAOF that got no number, because a primary that took the session's writes is no longer in charge.",
    ),
    (
        "markers_refused",
        "ack_markers_refused",
        "Markers that shards did not take, or not in time: their WAITAOF got an error.",
    ),
    ("logins_refused", "logins_refused", "Wrong passwords."),
    ("users_healed", "users_given_to_nodes", "ACL users given to nodes that had joined or were wiped."),
    ("pauses", "pauses", "Times clients were paused, by this proxy or another."),
    (
        "peer_messages_refused",
        "peer_messages_refused",
        "Messages on the proxies' channel that were not sealed with our secret, or not in time.",
    ),
    ("discoveries", "discoveries", "Times the slot map was read from the cluster."),
    ("discovery_failures", "discovery_failures", "Times no node could be asked for the slot map."),
)
_FALLBACKS: Final[tuple[tuple[Literal["markers_raised", "waits_alone"], str], ...]] = (
    ("markers_raised", "raised"),
    ("waits_alone", "alone"),
)
_REDIRECTIONS: Final[tuple[Literal["moved", "ask", "tryagain"], ...]] = ("moved", "ask", "tryagain")
_SHARD_GAUGES: Final[tuple[tuple[str, str, str], ...]] = (
    ("up", "shard_up", "1 when the shard's primary answers."),
    ("slots", "shard_slots", "Slots the shard serves."),
    ("replicas_online", "shard_replicas_online", "Replicas online."),
    ("offset", "shard_replication_offset_bytes", "The primary's replication offset."),
    ("outstanding", "shard_outstanding_commands", "Commands sent to the shard and not answered yet."),
    ("oldest_seconds", "shard_oldest_command_seconds", "Age of the oldest unanswered command."),
    ("lanes_open", "shard_lanes_open", "Connections to the shard now."),
    ("waitaof_trusted", "shard_waitaof_trusted", "1 when the shard's WAITAOF can be believed."),
)
_SHARD_COUNTERS: Final[tuple[tuple[str, str, str], ...]] = (
    ("lane_losses", "shard_lane_losses", "Connections to the shard lost."),
    ("bytes_in", "shard_received_bytes", "Bytes received from the shard."),
    ("bytes_out", "shard_sent_bytes", "Bytes sent to the shard."),
    ("incarnations", "shard_incarnations", "Times the shard's primary began a new life."),
)


class Figures(Protocol):
    """What a scrape reads. Both calls are quick, await nothing and may come at any time."""

    def counters(self) -> Counters: ...

    def shard_figures(self) -> Sequence[ShardFigures]: ...


class _Families(Collector):
    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        yield from _proxy_families(self._figures.counters())
        yield from _shard_families(self._figures.shard_figures())

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read figures of a proxy that is still being built."""
        return ()


class Metrics:
    """The registry of one proxy and the way to render it.

    Nothing is registered globally, so that several proxies (tests, embedding) can live in one process.
    """

    def __init__(self, figures: Figures, *, codec: str = "python", dataplane: str = "python") -> None:
        self.registry = CollectorRegistry()
        self._wait_children: dict[tuple[WaitCommand, WaitResult], Histogram] = {}
        self._replicas_children: dict[tuple[WaitCommand, int], Counter] = {}
        self._wait_seconds = Histogram(
            "ackgate_wait_seconds",
            "Time from a WAIT's or WAITAOF's turn to its answer, by how it ended.",
            ("command", "result"),
            buckets=_WAIT_BUCKETS,
            registry=self.registry,
        )
        for command in (
            _WAIT_COMMANDS
        ):  # present from the start at 0: a rate over a family that appears later misses its first events
            for result in _WAIT_RESULTS:
                self._wait_seconds.labels(command, result)
        self._concern_replies = Counter(
            "ackgate_concern_replies",
            "Replies to writes kept back for their acknowledgment (durability), by what became of it.",
            ("result",),
            registry=self.registry,
        )
        for concern_result in _CONCERN_RESULTS:
            self._concern_replies.labels(concern_result)
        self._wait_replicas = Counter(
            "ackgate_wait_replicas",
            f"WAIT and WAITAOF answered by a number, by how many replicas it was; {MANY_REPLICAS}+ is that or more.",
            ("command", "replicas"),
            registry=self.registry,
        )
        for command in _WAIT_COMMANDS:
            for replicas in range(MANY_REPLICAS + 1):
                self._wait_replicas.labels(command, _replicas_label(replicas))
        self._switchover_seconds = Histogram(
            "ackgate_switchover_seconds",
            "Planned switchovers by how they ended: from the beginning to the former primary in step as a replica.",
            ("result",),
            buckets=_SWITCHOVER_BUCKETS,
            registry=self.registry,
        )
        self._switchover_stall = Histogram(
            "ackgate_switchover_stall_seconds",
            "For how long a planned switchover held the commands of its shard.",
            ("result",),
            buckets=_SWITCHOVER_BUCKETS,
            registry=self.registry,
        )
        for switchover_result in _SWITCHOVER_RESULTS:
            self._switchover_seconds.labels(switchover_result)
            self._switchover_stall.labels(switchover_result)
        self._round_waiters = Histogram(
            "ackgate_ack_round_waiters",
            "How many waited for a round of acknowledgments.",
            buckets=_WAITER_BUCKETS,
            registry=self.registry,
        )
        self._step_seconds = Histogram(
            "ackgate_step_seconds",
            "The steps of a write's way. dispatch: read from the client to taken by the kernel for the shard; execute: "
            "to its reply; relay: to the reply taken by the kernel for the client; these of a few plain commands a "
            "second, which are sampled. replicate: from an offset to its acknowledgment by the replicas; persist: from "
            "a marker to its fsync by the replicas; these of rounds, or of a probe where none ran for 10 s.",
            ("step", "shard"),
            buckets=_STEP_BUCKETS,
            registry=self.registry,
        )
        self._steps: dict[str, dict[StepName, Histogram]] = {}
        self.registry.register(_Build(codec, dataplane))
        self.registry.register(_Families(figures))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def observe_wait(self, command: WaitCommand, result: WaitResult, seconds: float, replicas: int | None) -> None:
        """Counts one finished WAIT or WAITAOF that took ``seconds`` and answered ``replicas``; None: no number."""
        histogram = self._wait_children.get((command, result))
        if histogram is None:
            histogram = self._wait_children[command, result] = self._wait_seconds.labels(command, result)
        histogram.observe(seconds)
        if replicas is not None:
            counter = self._replicas_children.get((command, replicas))
            if counter is None:
                counter = self._wait_replicas.labels(command, _replicas_label(replicas))
                if len(self._replicas_children) < MOST_CHILDREN:
                    self._replicas_children[command, replicas] = counter
            counter.inc()

    def observe_switchover(self, result: SwitchoverResult, seconds: float, stall: float) -> None:
        """Counts a planned switchover that took ``seconds`` in all and held commands for ``stall``."""
        self._switchover_seconds.labels(result).observe(seconds)
        self._switchover_stall.labels(result).observe(stall)

    def observe_round(self, waiters: int) -> None:
        """Counts a round of acknowledgments that was begun for so many."""
        self._round_waiters.observe(waiters)

    def know_shard(self, shard: str) -> dict[StepName, Histogram]:
        """The steps of the shard with the id ``shard``, which are there from the first call on, at 0."""
        steps = self._steps.get(shard)
        if steps is None:
            steps = self._steps[shard] = {name: self._step_seconds.labels(name, shard) for name in _STEPS}
        return steps

    def observe_step(self, step: StepName, shard: str, seconds: float) -> None:
        """Counts one step of a write to a shard."""
        self.know_shard(shard)[step].observe(seconds)

    def observe_concern(self, result: ConcernResult, replies: int) -> None:
        """Counts replies to writes that were kept back until they were acknowledged, or were not."""
        self._concern_replies.labels(result).inc(replies)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """(body, content type) in the exposition format that the ``Accept`` header ``accept`` asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class _Build(Collector):
    def __init__(self, codec: str, dataplane: str) -> None:
        self._codec = codec
        self._dataplane = dataplane

    def collect(self) -> Iterator[Metric]:
        compiled = {"codec": self._codec, "data_plane": self._dataplane}
        build = {"version": __version__, **compiled, "python": platform.python_version()}
        yield InfoMetricFamily("ackgate_build", "What is running.", value=build)


def _proxy_families(counters: Counters) -> Iterator[Metric]:
    for key, name, text in _GAUGES:
        yield GaugeMetricFamily(f"ackgate_{name}", text, value=_number(counters, key))
    for key, name, text in _COUNTERS:
        yield CounterMetricFamily(f"ackgate_{name}", text, value=_number(counters, key))
    fallbacks = CounterMetricFamily(
        "ackgate_ack_fallbacks",
        "Acknowledgments asked for in another way than the usual one. raised: a marker was put on a lane that "
        "carried one already, all being taken; alone: a wait was answered by a task of its own, because slots had "
        "moved or a proof was missing.",
        labels=("kind",),
    )
    for fallback, label in _FALLBACKS:
        fallbacks.add_metric((label,), counters.get(fallback, 0))
    yield fallbacks
    redirections = CounterMetricFamily("ackgate_redirections", "Redirections by shards, followed.", labels=("kind",))
    for kind in _REDIRECTIONS:
        redirections.add_metric((kind,), counters.get(kind, 0))
    yield redirections
    nodes = GaugeMetricFamily(
        "ackgate_engine_nodes", "Nodes of the cluster by engine and version.", labels=("engine", "version")
    )
    for label, count in counters.get("engine_versions", {}).items():
        engine, _, version = label.partition(" ")
        nodes.add_metric((engine, version), count)
    yield nodes


def _shard_families(shards: Sequence[ShardFigures]) -> Iterator[Metric]:
    for key, name, text in _SHARD_GAUGES:
        gauge = GaugeMetricFamily(f"ackgate_{name}", text, labels=("shard",))
        for figures in shards:
            if key in figures:
                gauge.add_metric((figures["shard"],), _number(figures, key))
        yield gauge
    for key, name, text in _SHARD_COUNTERS:
        counter = CounterMetricFamily(f"ackgate_{name}", text, labels=("shard",))
        for figures in shards:
            if key in figures:
                counter.add_metric((figures["shard"],), _number(figures, key))
        yield counter
    lag = GaugeMetricFamily(
        "ackgate_replica_lag_bytes", "How far a replica is behind its primary.", labels=("shard", "replica")
    )
    for figures in shards:
        for replica, behind in figures.get("lag_bytes", {}).items():
            lag.add_metric((figures["shard"], replica), behind)
    yield lag
    seconds = GaugeMetricFamily(
        "ackgate_replica_lag_seconds",
        "Age of the oldest part of its primary's data that a replica is not known to have.",
        labels=("shard", "replica"),
    )
    for figures in shards:
        for replica, age in figures.get("lag_seconds", {}).items():
            seconds.add_metric((figures["shard"], replica), age)
    yield seconds


def _replicas_label(replicas: int) -> str:
    return str(replicas) if replicas < MANY_REPLICAS else f"{MANY_REPLICAS}+"


def _number(figures: Counters | ShardFigures, key: str) -> float:
    value = figures.get(key, 0)
    return value if isinstance(value, int | float) else 0
