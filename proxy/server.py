"""The server: the rooms put together, and the data plane's calls handed to the room that answers them."""

from __future__ import annotations

import math
import os
import platform
import socket
import time
from collections.abc import Sequence
from typing import Any

import trio

from proxy import __version__, codec, dataplane
from proxy.acks.concern import Concerns
from proxy.acks.primary import AckLane, Primary
from proxy.acks.probe import Probes
from proxy.acks.wait import Acks
from proxy.acks.waiters import Run
from proxy.codec import Limits as CodecLimits
from proxy.control.acl import AclCommands
from proxy.control.blocking import UNBLOCK, BlockingCommands
from proxy.control.clients import ClientCommands
from proxy.control.connection import ConnectionCommands
from proxy.control.draining import Drain
from proxy.control.functions import NOT_FOUND, Libraries
from proxy.control.logs import LogCommands
from proxy.control.merged import INFO, MergedCommands
from proxy.control.monitoring import MonitorCommands
from proxy.control.pausing import Pausing
from proxy.control.permissions import Permissions
from proxy.control.policy import Policy
from proxy.control.pubsub import PubSubCommands
from proxy.control.router import Router
from proxy.control.scripts import NOSCRIPT, ScriptCommands
from proxy.control.sending import Sender
from proxy.control.siblings import ALONE, Place
from proxy.control.stuck import NON_LOCAL, StuckScripts
from proxy.control.tracking import TrackingCommands
from proxy.control.waiting import WaitCommands
from proxy.dataplane import Client, DataPlane, Lane, Lost, Request
from proxy.listening import listening
from proxy.meaning import limits, password, rule, shared_key
from proxy.news import News
from proxy.observe.metrics import Metrics
from proxy.observe.pulse import Pulse
from proxy.observe.steps import StepFigures
from proxy.observe.traces import Traces
from proxy.peers import Peers
from proxy.process import keep_freed_memory, raise_file_limit, spare_the_collector
from proxy.readings import Readings
from proxy.sessions.clients import figures as client_figures
from proxy.sessions.connection import Doorkeeper
from proxy.settings import ProxySettings, split_address
from proxy.switchover.procedure import Holds
from proxy.switchover.switchovers import Report, Switchovers
from proxy.topology.channels import Hub
from proxy.topology.cluster import Cluster
from proxy.topology.elsewhere import WATCHED
from proxy.topology.lanes import Lanes
from proxy.topology.logins import Logins
from proxy.topology.redirects import Redirects
from proxy.topology.roster import Roster
from proxy.topology.trust import Trust
from shard.client import ConnectionLost, ControlConnection, Credentials, format_address

TURNS = 8  # turns of the data plane per wake of its trio task, while there is something to do
ACCEPT_AGAIN = 0.1  # seconds without accepting after the process ran out of descriptors
SAY_AGAIN = 60.0  # seconds before it is said again that it has run out of them
READY_LOOK = 0.02  # seconds between two looks whether every shard answers, while starting
SAMPLE_EVERY = 0.02
"""Seconds between two commands that are timed on a lane: enough for a histogram, too few to be felt."""
IDLE_LOOK = 1.0  # seconds between two looks for idle clients


class Server:
    """One proxy.  Raises ``UserError`` from :meth:`run` for what is the user's to mend."""

    def __init__(self, settings: ProxySettings, *, log: Any, place: Place = ALONE) -> None:
        self.settings = settings
        self.place = place
        self.log = log
        self.news = News(self)
        self.readings = Readings(self)
        self.metrics = Metrics(self.readings, codec=codec.IMPLEMENTATION, dataplane=dataplane.IMPLEMENTATION)
        self.pulse = Pulse(self.metrics, self.readings.shards_seen)
        self.address: tuple[str, int] = (settings.listen.host, settings.listen.port)
        self.started = time.time()
        timeouts = settings.timeouts
        credentials = Credentials(settings.cluster.username, password(settings.cluster.password_file))
        keepalive = int(settings.clients.tcp_keepalive)
        self.plane = DataPlane(
            self,
            limits=limits(settings),
            watched=(*WATCHED, *NOSCRIPT, NOT_FOUND, NON_LOCAL),
            keepalive=keepalive,
            client_ids=place.client_ids(),
        )
        if settings.admin.command_metrics:
            self.plane.sample_every = SAMPLE_EVERY
        else:
            self.plane.tally = None
        self.cluster = Cluster(
            [split_address(seed) for seed in settings.cluster.seeds],
            timeouts,
            credentials,
            changed=self.news.map_changed,
            lived=self.news.lived,
            restarted=lambda: self.router.vocabulary.refresh(),
            recovered=self.news.recovered,
            moving=lambda: self.redirects.unsettle(),
            amiss=lambda: not self.ready,
        )
        self.steps = StepFigures(
            self.metrics,
            name=self._shard_id,
            believed=lambda shard: not self.trust.early(shard),
            traced=lambda sample: self.traces.begin(sample),
        )
        self.acks = Acks(
            self.plane,
            connect=self._connect_primary,
            distrust=self._distrust,
            restamp=lambda shard, tick, generation: self.lanes.restamp(shard, tick, generation),
            shards=self.cluster.serving,
            ended=self.news.life_ended,
            answers=self.cluster.answers,
            hint=self.cluster.hint,
            recorder=self.steps.of,
        )
        self.trust = Trust(self.cluster, self.plane, self.acks.pace)
        self.probes = Probes(
            self.acks,
            settings.acks.probe_interval,
            replicas=self.cluster.replicas_alive,
            keeps_aof=self.cluster.keeps_aof,
        )
        self.traces = Traces(
            self.acks,
            describe=self.cluster.describe_shard,
            keeps_aof=self.cluster.keeps_aof,
            named=self.cluster.named,
        )
        self.roster = Roster(self.cluster, settings.auth.heal_users, self.news.users_changed)
        self.logins = Logins(
            self.cluster,
            primaries=self.roster.primaries,
            renewed=lambda user: self.lanes.renew(user),
            mends=self.roster.mends,
        )
        self.lanes = Lanes(
            self.plane,
            settings.lanes,
            credentials,
            timeouts.connect,
            primary=self.cluster.primary,
            observe=self.acks.incarnations.observe,
            stamp=self.acks.stamp,
            trouble=self.cluster.hint,
            logins=self.logins,
            denied=lambda lane, frame: self.redirects.denied(lane, frame),
            expelled=lambda identity: self.router.expel(identity.user, identity),
            passwords=lambda identity: self.router.passwords(identity),
            outdated=self.news.user_is_another,
            transacts=self.roster.may_transact,
        )
        self.redirects = Redirects(
            self.plane,
            self.cluster,
            self.lanes,
            timeouts,
            lost_write=self.news.lost_write,
            one_by_one=lambda on: self.router.vocabulary.one_by_one(on),
        )
        patience = timeouts.hold
        sender = Sender(
            self.plane,
            self.cluster,
            self.lanes,
            settings.lanes.large_request,
            lambda user: self.concerns.of_user(user),
        )
        doorkeeper = Doorkeeper(password(settings.auth.password_file))
        self.permissions = Permissions(self.cluster, self.roster)
        holds = Holds(
            hold=self.news.hold,
            let_go=self.lanes.let_go,
            busy=self.lanes.busy,
            served=lambda shard: self.lanes.base[shard].attached,
        )
        self.switchovers = Switchovers(self.cluster, holds, self.metrics.observe_switchover, timeouts.hold)
        self.admin_token = password(settings.admin.token_file)
        connection = ConnectionCommands(sender, doorkeeper, self.logins, self.permissions)
        self.brake = connection.brake
        self.waits = WaitCommands(sender, self.acks, self.metrics.observe_wait)
        self.concerns = Concerns(
            [rule(each) for each in settings.durability],
            self.acks,
            self.waits.crowd,
            self.plane,
            keys_of=lambda raw: self.router.keys(raw),
            observe=self.metrics.observe_concern,
        )
        self.plane.concern_of = lambda client, raw: self.concerns.of_write(client.session.identity.user, raw)
        self.blocking = BlockingCommands(sender, connection.sessions, patience, place)
        self.scripts = ScriptCommands(sender, self.redirects, self.permissions)
        self.libraries = Libraries(sender, self.redirects, lambda: not self.pausing.mode)
        self.stuck = StuckScripts(sender)
        self.hub = Hub(self.plane, self.cluster, timeouts, credentials)
        self.pubsub = PubSubCommands(
            sender, self.hub, self.permissions, connection.sessions, patience, settings.clients.subscriptions
        )
        self.sessions = connection.sessions
        self.draining = Drain(self.plane, self.sessions)
        self.tracking = TrackingCommands(sender, self.sessions, settings.lanes.private_sessions, timeouts.connect)
        self.client_commands = ClientCommands(sender, connection.sessions, place)
        monitors = MonitorCommands(sender, lambda on: self.router.vocabulary.monitored(on))
        self.peers = Peers(self.cluster, shared_key(settings, place))
        self.pausing = Pausing(
            sender,
            self.permissions,
            self.scripts.book,
            self.peers,
            table=lambda: self.router.table,
            engine=lambda: connection.engine().name,
            changed=lambda: self.router.vocabulary.paused(),
            pass_on=lambda call: self.router.pass_on(call),
            again=lambda call: self.router.again(call),
            refuse=lambda session, request, frame: self.router.refuse(session, request, frame),
            held=lambda shard: self.redirects.held_for(shard),
        )
        families = (
            self.pubsub.handlers,
            monitors.handlers,
            connection.handlers,
            AclCommands(sender, self.roster, settings.cluster.username, self.news.user_deleted).handlers,
            self.blocking.handlers,
            self.scripts.handlers,
            self.client_commands.handlers,
            self.tracking.handlers,
            LogCommands(sender).handlers,
            MergedCommands(sender, self.permissions, self._own_info, patience, place).handlers,
        )
        self.router = Router(
            sender,
            Policy(settings.commands.allow),
            connection,
            self.permissions,
            self.waits,
            self.blocking,
            self.scripts,
            self.tracking,
            monitors,
            self.pausing,
            families,
            CodecLimits(large_request=settings.lanes.large_request),
            patience,
        )
        self.router.vocabulary.tallies = [each for each in (self.plane.tally, self.steps.at_shard) if each is not None]
        self._accept_again = trio.Event()
        self.slow_clients = 0
        self._say_again = 0.0

    # -- running -------------------------------------------------------------------------------------
    async def run(self, *, task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled.  Started when the port is bound; clients are accepted once the cluster is known."""
        raise_file_limit(self.settings, self.log.warning)
        keep_freed_memory()
        listener = listening(self.settings.listen, self.place)
        self.address = listener.getsockname()[:2]
        try:
            async with trio.open_nursery() as nursery:
                for task in (
                    self._turn, self.cluster.run, self.lanes.run, self.redirects.run, self.acks.run,
                    self.trust.run, self.roster.run, self.hub.run, self.pubsub.run, self.waits.crowd.run,
                    self.blocking.run, self.libraries.run, self.probes.run, self.traces.run, self.concerns.run,
                    self.switchovers.run, self.router.sender.run, self.router.run, self.pausing.run,
                    self.peers.run, self.pulse.run, self._resume_accepting, self._close_idle,
                ):
                    nursery.start_soon(task)
                nursery.start_soon(self._begin_accepting, listener)
                task_status.started(self)
        finally:
            self.trust.close()
            self.logins.close()
            self.permissions.close()
            self.plane.close()
            listener.close()

    async def _turn(self) -> None:
        descriptor = self.plane.fileno()
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            for _ in range(TURNS):
                busy = self.plane.run_once()
                self.redirects.flush()
                if self.plane.holds:
                    self.concerns.sweep()
                if self.plane.samples:
                    self.steps.take(self.plane.take_samples())
                if self.acks.pace.resting:
                    self.acks.pace.turned()
                if not busy:
                    break

    async def _begin_accepting(self, listener: socket.socket) -> None:
        """Accept once it is known what the commands mean; until then clients wait in the backlog."""
        while not self.cluster.map.version:
            await self.cluster.updated.wait()
        while not len(self.router.table):
            await self.router.vocabulary.read_commands()
            if not len(self.router.table):
                await trio.sleep(READY_LOOK)
        await self.peers.joined()  # a pause that runs holds new clients, too
        spare_the_collector()
        if self.place.late:
            listener.listen(self.settings.listen.backlog)
        if not self.draining.begun:
            self.plane.listen(listener)

    async def _resume_accepting(self) -> None:
        while True:
            await self._accept_again.wait()
            await trio.sleep(ACCEPT_AGAIN)
            self._accept_again = trio.Event()
            self.plane.resume_accepting()

    async def _close_idle(self) -> None:
        """Close clients that are idle for too long, and those whose replies pile up behind one that does not come."""
        limit = self.settings.clients.idle_timeout or math.inf
        while True:
            await trio.sleep(min(IDLE_LOOK, limit))
            now = time.monotonic()
            for client in list(self.plane.clients.values()):
                if client.subscriber:
                    self.plane.bound_pushes(client)
                if client.pending:
                    self.plane.bound_replies(client)
                elif client.subscriber:
                    continue  # it waits for others (timeout.c: clientsCronHandleTimeout)
                elif now - client.last_read > limit:
                    self.plane.kill(client)

    async def drain(self) -> None:
        """Let everybody out (see ``proxy.control.draining``), within ``timeouts.drain``; to be cancelled then."""
        await self.draining.run(self.settings.timeouts.drain)

    async def wait_ready(self) -> None:
        """Return when every slot has a primary that answers and clients are accepted."""
        while not (self.ready and self.plane.listeners):  # noqa: ASYNC110 -- many conditions, no one event
            await trio.sleep(READY_LOOK)

    @property
    def ready(self) -> bool:
        """Every slot has a primary that answers."""
        return (
            not self.draining.begun
            and bool(self.cluster.map.version)
            and self.cluster.map.covered()
            and all(self.lanes.base[shard].attached or self.lanes.on_hold(shard) for shard in self.cluster.serving())
            and self.cluster.led()
        )

    # -- what acks ask ---------------------------------------------------------------------------------------
    async def _connect_primary(self, shard: int) -> ControlConnection:
        node = self.cluster.primary(shard)
        if node is None:
            raise ConnectionLost("the shard has no primary")
        try:
            return await self.cluster.connect(node.host, node.port)
        except ConnectionLost:
            self.cluster.hint()
            raise

    def _distrust(self, shard: int, primary: Primary) -> Run[str]:
        if self.settings.acks.untrusted_waitaof != "pass":
            return self.trust.distrust(shard, primary)
        believed: Run[str] = Run()
        believed.finish(None)
        return believed

    # -- what the data plane tells (dataplane.Control) -------------------------------------------------------
    def opened(self, client: Client) -> None:
        self.router.opened(client)

    def closed(self, client: Client) -> None:
        self.router.closed(client)

    def half_closed(self, client: Client) -> None:
        self.router.half_closed(client)

    def command(self, request: Request) -> None:
        self.router.command(request)

    def held_back(self, request: Request, lane: Lane, frame: bytes) -> None:
        if isinstance(lane.owner, AckLane):
            self.plane.answer(request, frame)
            return
        if lane.owner.identity.own:
            self.tracking.disturbed(lane.owner.identity.own)  # what is sent again goes without CLIENT CACHING
        if frame in NOSCRIPT:
            self.scripts.held_back(request, lane, frame)
        elif frame == NOT_FOUND:
            self.libraries.held_back(request, lane, frame)
        elif frame.startswith(NON_LOCAL):
            self.stuck.held_back(request, lane, frame)
        else:
            self.redirects.held_back(request, lane, frame)

    def lane_down(self, lane: Lane, lost: list[Lost], reason: str) -> None:
        if isinstance(lane.owner, AckLane):
            lane.owner.lost(reason)
        else:
            self.redirects.lane_down(lane, lost, reason)

    def held_too_much(self, lane: Lane) -> None:
        self.redirects.held_too_much(lane)

    def pushed(self, lane: Lane, frame: bytes) -> None:
        self.tracking.pushed(lane, frame)

    def accept_failed(self, error: OSError) -> None:
        self._accept_again.set()
        now = time.monotonic()
        if now >= self._say_again:
            self._say_again = now + SAY_AGAIN
            cure = "raise the limit on open files (ulimit -n)"
            self.log.error("cannot accept clients", reason=error.strerror, cure=cure)

    def refused(self, client: Client, why: str) -> None:
        self.slow_clients += 1
        self.log.warning(why, client=client.id)

    def failed(self, where: str, error: Exception) -> None:
        self.log.error("defect: one connection was closed", where=where, exc_info=error)

    # -- what is told ----------------------------------------------------------------------------------------
    def topology(self) -> dict[str, Any]:
        """The topology as JSON (see ``Cluster.describe``), and where clients connect."""
        differing = self.roster.describe()
        users = {"users_differ": differing} if differing else {}
        peers = len(self.peers.peers) if self.peers.on else None
        own = {"paused": self.pausing.describe(), "peers": peers}
        ending = {"draining": True} if self.draining.begun else {}
        return {"endpoint": format_address(*self.address), **self.cluster.describe(), **users, **own, **ending}

    async def answer_sibling(self, what: str, value: Any) -> Any:
        """What another worker behind the same port asks for one of its clients (see ``proxy.control.siblings``)."""
        if what == INFO:
            return self._clients_info()
        if what == UNBLOCK:
            return await self.blocking.answer_sibling(value)
        return self.client_commands.answer_sibling(what, value)

    def switchover(self, shard: str, to: str | None, max_stall: float | None) -> Report:
        """Begin a planned change of a shard's primary (see ``Switchovers.begin``)."""
        return self.switchovers.begin(shard, to, max_stall)

    def trace(self, client: int) -> dict[str, Any] | None:
        """The way of the write of a client that asked for it (see ``Traces.of``)."""
        return self.traces.of(client)

    def _shard_id(self, index: int) -> str | None:
        shard = self.cluster.shard(index)
        return shard.id.decode() if shard is not None else None

    def _clients_info(self) -> dict[str, int]:
        """INFO's figures of clients, as far as those of siblings are to be added."""
        figures = client_figures(self.sessions.values())
        return {"connected_clients": len(self.plane.clients), "maxclients": self.plane.limits.maxclients, **figures}

    def _own_info(self, siblings: Sequence[dict[str, int]]) -> dict[str, dict[str, object]]:
        """INFO's sections about the server the client is connected to: this one, and all its workers' clients."""
        clients = self._clients_info()
        uptime = int(time.time() - self.started)
        return {
            "server": {
                "redis_mode": "standalone",
                "ackgate_version": __version__,
                "os": f"{platform.system()} {platform.release()} {platform.machine()}",
                "process_id": os.getpid(),
                "tcp_port": self.address[1],
                "uptime_in_seconds": uptime,
                "uptime_in_days": uptime // 86400,
            },
            "clients": {
                **{name: value + sum(each.get(name, 0) for each in siblings) for name, value in clients.items()},
                "cluster_connections": 0,
                **self.pausing.info(),
            },
            "stats": self.hub.figures(),
            "replication": {"role": "master", "connected_slaves": 0},
        }
