"""One node: its folder, its configuration file, its log, its process."""

from __future__ import annotations

import re
from pathlib import Path

import trio

from shard.binary import Server
from shard.client import ConnectionLost, ControlConnection, Credentials, ReplyError, format_address
from shard.configuration import SHUTDOWN_SECONDS, NodeFacts, render
from shard.errors import ShardError
from shard.layout import PlannedNode, port_in_use, ports_free, unwritable, write_private
from shard.process import Process, spawn
from shard.settings import ClusterSettings

_POLL_SECONDS = 0.03
# The node of a supervisor that was just killed takes a moment to go.
_PORT_PATIENCE_SECONDS = 3.0
_LOG_ROTATE_BYTES = 16 * 1024 * 1024
# "4242:M 21 Nov 2026 05:41:23.000 # " before each message of the engine's log (src/server.c, serverLogRaw).
_LOG_PREFIX = re.compile(r"^\d+:[A-Z] \d+ \w+ \d{4} [\d:.]+ [.\-*#] ")


class Node:
    """A server process on this machine that can be started, stopped and started again on the same data."""

    def __init__(
        self,
        plan: PlannedNode,
        directory: Path,
        server: Server,
        settings: ClusterSettings,
        *,
        zone: str = "",
        hash_seed: str = "",
        password: str | None = None,
    ) -> None:
        self.plan = plan
        self.dir = directory
        self.server = server
        self.settings = settings
        self.zone = zone
        self.starts = 0
        self.started_at = 0.0
        self._facts = NodeFacts(directory, plan.port, zone, hash_seed, password)
        self._process: Process | None = None

    @property
    def name(self) -> str:
        """Folder name, e.g. ``shard-1-2``."""
        return self.plan.name

    @property
    def shard(self) -> int:
        """Number of its shard, from 1."""
        return self.plan.shard

    @property
    def host(self) -> str:
        """The IP address it listens on."""
        return self.settings.host

    @property
    def port(self) -> int:
        """The port clients of the node use."""
        return self.plan.port

    @property
    def address(self) -> str:
        """``host:port``."""
        return format_address(self.host, self.port)

    @property
    def credentials(self) -> Credentials:
        """What the node asks of those who connect."""
        return Credentials(password=self._facts.password)

    @property
    def configuration_path(self) -> Path:
        """The rendered file (mode 0600)."""
        return self.dir / "node.conf"

    @property
    def log_path(self) -> Path:
        """What the process printed."""
        return self.dir / "node.log"

    @property
    def pid(self) -> int | None:
        """Process id, None when it does not run."""
        return self._process.pid if self._process is not None and self._process.alive else None

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return self._process is not None and self._process.alive

    @property
    def returncode(self) -> int | None:
        """How the last process ended (see ``Process.returncode``); None before the first start and while it runs."""
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        """Write the configuration, start the process, return when it answers and its data is loaded.

        Raises ``ShardError``: port in use, folder not writable, or an exit at start with the last line of the log.
        ``settings.start_timeout`` seconds are allowed, the loading of data not counted.
        """
        await self._wait_for_ports()
        self._prepare_folder()
        self._process = spawn([self.server.path, self.configuration_path], cwd=self.dir, log=self.log_path)
        self.starts += 1
        self.started_at = trio.current_time()
        try:
            await self._wait_until_it_answers(self._process)
        except BaseException:
            self.kill()
            raise

    async def stop(self, grace: float | None = None) -> None:
        """End in order: SIGTERM, then SIGKILL after ``grace`` seconds (default: enough for a snapshot)."""
        if self._process is None:
            return
        default = 120.0 if self.settings.snapshot != "off" else SHUTDOWN_SECONDS + 10.0
        await self._process.stop(default if grace is None else grace)

    async def wait(self) -> int:
        """Wait for the end of the process, return its status. Raises ``RuntimeError`` before the first start."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return await self._process.wait()

    def kill(self) -> None:
        """SIGKILL, without waiting; harmless when it does not run."""
        if self._process is not None and self._process.alive:
            self._process.kill()

    async def connect(self, *, timeout: float = 2.0) -> ControlConnection:  # noqa: ASYNC109 -- passed on to open()
        """Open a control connection. Raises ``ConnectionLost``, ``ReplyError``."""
        return await ControlConnection.open(
            self.host, self.port, password=self._facts.password, timeout=timeout, client_name="ackgate-shard"
        )

    def read_id(self) -> str | None:
        """Return the id the engine gave the node, from its ``nodes.conf``; None if it never had one."""
        try:
            lines = (self.dir / "nodes.conf").read_text().splitlines()
        except OSError:
            return None
        for line in lines:
            node_id, _place, flags, *_rest = [*line.split(), "", "", ""]
            if "myself" in flags.split(","):
                return node_id
        return None

    def last_words(self) -> str:
        """Return the last line of the log that says something, without date and pid; empty if there is none.

        After a crash that is the line naming the cause, above the report.
        """
        try:
            text = self.log_path.read_bytes()[-65536:].decode(errors="replace")
        except OSError:
            return ""
        last_run = text.rpartition(" is starting oO0O")[2]
        lines = [said for line in last_run.splitlines() if (said := _LOG_PREFIX.sub("", line).strip())]
        causes = [line for line in lines if line.startswith("Guru Meditation:") or "crashed by signal" in line]
        return (causes[:1] or lines[-1:] or [""])[0]

    async def _wait_for_ports(self) -> None:
        with trio.move_on_after(_PORT_PATIENCE_SECONDS):
            while not ports_free(self.host, self.port):  # noqa: ASYNC110 -- the kernel tells nobody
                await trio.sleep(_POLL_SECONDS)
            return
        raise port_in_use(self.host, self.port)

    def _prepare_folder(self) -> None:
        text = render(self.server, self.settings, self._facts)
        try:
            self.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.log_path.exists() and self.log_path.stat().st_size > _LOG_ROTATE_BYTES:
                self.log_path.replace(self.log_path.with_suffix(".log.1"))
            write_private(self.configuration_path, text.encode())
        except OSError as error:
            raise unwritable(self.dir, error) from None

    async def _wait_until_it_answers(self, process: Process) -> None:
        deadline = trio.current_time() + self.settings.start_timeout
        while True:
            if not process.alive:
                raise self._ended_at_start(process)
            state = await self._look(process)
            if state == "ready":
                return
            if state == "loading":
                deadline = trio.current_time() + self.settings.start_timeout
            if trio.current_time() > deadline:
                raise ShardError(
                    f"node {self.name} on {self.address} did not answer within {self.settings.start_timeout:g} s: "
                    f"see {self.log_path}"
                )
            await trio.sleep(_POLL_SECONDS)

    async def _look(self, process: Process) -> str:
        """Return ``ready``, ``loading`` or ``silent``. Only our own process counts: a stranger may have the port."""
        try:
            async with await self.connect(timeout=1.0) as connection:
                info = parse_info(await connection.call("INFO"))
        except (ConnectionLost, ReplyError):
            return "silent"
        if info.get("process_id") != str(process.pid):
            return "silent"
        return "ready" if info.get("loading") == "0" else "loading"

    def _ended_at_start(self, process: Process) -> ShardError:
        words = self.last_words()
        if "Address already in use" in words or "Failed listening on port" in words:
            return port_in_use(self.host, self.port)
        return ShardError(
            f"node {self.name} ended at its start (status {process.returncode}): {words or 'it said nothing'}; "
            f"see {self.log_path}"
        )


def parse_info(reply: bytes) -> dict[str, str]:
    """Return the fields of an ``INFO`` reply."""
    pairs = (line.partition(":") for line in reply.decode(errors="replace").splitlines() if not line.startswith("#"))
    return {name: value for name, colon, value in pairs if colon}
