"""The admin endpoint, over a real socket."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from proxy.observe.admin import AdminError, bind_admin, serve_admin, unready_reason
from proxy.observe.figures import NO_COMMANDS, CommandFigures, Counters, NodeFigures, ShardFigures
from proxy.observe.metrics import Metrics
from proxy.settings import AdminSettings

NODE = {"address": "127.0.0.1:7000", "node_id": "a" * 40, "pid": 1, "offset": 5, "health": "online", "zone": None}


class StubServer:
    def __init__(self) -> None:
        self.ready = True
        self.shards: list[dict[str, Any]] = [{"id": "s1", "slots": [[0, 16383]], "primary": NODE, "replicas": []}]
        self.metrics = Metrics(self)

    def counters(self) -> Counters:
        return {"commands": 42}

    def shard_figures(self) -> Sequence[ShardFigures]:
        return [{"shard": "s1", "up": 1}]

    def node_figures(self) -> Sequence[NodeFigures]:
        return []

    def command_figures(self) -> CommandFigures:
        return NO_COMMANDS

    def topology(self) -> dict[str, Any]:
        return {"version": 3, "shards": self.shards}

    def trace(self, client: int) -> dict[str, Any] | None:
        return {"complete": True} if client == 7 else None


class Log:
    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda event, **fields: self.events.append((level, event))


@asynccontextmanager
async def admin(server: StubServer, log: Log | None = None) -> AsyncIterator[str]:
    listener = bind_admin(AdminSettings(port=0))
    async with trio.open_nursery() as nursery:
        host, port = await nursery.start(
            lambda task_status: serve_admin(server, listener, log=log or Log(), task_status=task_status)
        )
        yield f"http://{host}:{port}"
        nursery.cancel_scope.cancel()


async def get(url: str, **headers: str) -> tuple[int, str, str]:
    def fetch() -> tuple[int, str, str]:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
                return answer.status, answer.headers["content-type"], answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["content-type"], error.read().decode()

    return await trio.to_thread.run_sync(fetch)


async def test_alive_ready_and_topology() -> None:
    server = StubServer()
    async with admin(server) as url:
        assert (await get(f"{url}/healthz"))[0] == 200
        status, kind, body = await get(f"{url}/readyz")
        assert (status, json.loads(body)) == (200, {"ready": True})
        assert kind == "application/json"
        assert json.loads((await get(f"{url}/topology"))[2]) == server.topology()
        assert (await get(f"{url}/nothing"))[0] == 404


async def test_the_trace_of_a_client_can_be_read() -> None:
    async with admin(StubServer()) as url:
        status, kind, body = await get(f"{url}/traces/7")
        assert (status, kind, json.loads(body)) == (200, "application/json", {"complete": True})
        assert (await get(f"{url}/traces/8"))[0] == 404
        assert (await get(f"{url}/traces/key"))[0] == 404


async def test_not_ready_is_503_with_the_reason_and_still_alive() -> None:
    server = StubServer()
    server.ready = False
    server.shards[0]["primary"] = None
    async with admin(server) as url:
        status, _, body = await get(f"{url}/readyz")
        assert status == 503
        assert json.loads(body) == {"ready": False, "reason": "16384 slots have no primary that answers: shard s1"}
        assert (await get(f"{url}/healthz"))[0] == 200


async def test_metrics_can_be_parsed_and_name_their_format_once() -> None:
    async with admin(StubServer()) as url:
        status, kind, body = await get(f"{url}/metrics")
        assert status == 200
        assert kind.count("charset") == 1
        samples = {
            sample.name: sample.value for family in text_string_to_metric_families(body) for sample in family.samples
        }
        assert samples["ackgate_commands_total"] == 42
        assert (await get(f"{url}/metrics", Accept="application/openmetrics-text"))[1].startswith(
            "application/openmetrics-text"
        )


async def test_a_failing_page_answers_500_is_logged_and_harms_nothing_else() -> None:
    class Broken(StubServer):
        def topology(self) -> dict[str, Any]:
            raise RuntimeError("secret detail")

    log = Log()
    async with admin(Broken(), log) as url:
        status, _, body = await get(f"{url}/topology")
        assert status == 500
        assert "secret" not in body
        with trio.fail_after(10):  # it is logged behind the answer
            while ("exception", "admin_http") not in log.events:
                await trio.lowlevel.checkpoint()
        assert (await get(f"{url}/healthz"))[0] == 200


async def test_it_stops_with_idle_and_half_open_connections() -> None:
    with socket.socket() as idle, socket.socket() as half:
        async with admin(StubServer(), log := Log()) as url:
            address = url.removeprefix("http://").split(":")
            for connection in (idle, half):
                connection.connect((address[0], int(address[1])))
            half.sendall(b"GET /healthz HT")
            assert (await get(f"{url}/healthz"))[0] == 200
        idle.settimeout(10)
        assert idle.recv(1) == b""
        assert log.events == []


async def test_the_port_is_free_again_after_a_stop() -> None:
    async with admin(StubServer()) as url:
        port = int(url.rpartition(":")[2])
        await get(f"{url}/healthz")
    with bind_admin(AdminSettings(port=port)) as listener:
        assert listener.getsockname()[1] == port


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(AdminError) as caught:
            bind_admin(AdminSettings(port=port))
    assert f"127.0.0.1:{port}: Address already in use" in str(caught.value)
    assert "--admin-port" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shards", "reason"),
    [
        ([], "the cluster has not been discovered yet"),
        ([{"id": "a", "slots": [[0, 99]], "primary": NODE}], "16284 slots are assigned to no shard"),
        ([{"id": "a", "slots": [[0, 16383]], "primary": NODE}], "the primaries have not all answered yet"),
        (
            [
                {"id": "a", "slots": [[0, 99]], "primary": NODE},
                {"id": "b", "slots": [[100, 16383]], "primary": NODE | {"health": "fail"}},
            ],
            "16284 slots have no primary that answers: shard b",
        ),
    ],
)
def test_the_reason_for_not_being_ready(shards: list[dict[str, Any]], reason: str) -> None:
    assert unready_reason({"version": 1, "shards": shards}) == reason
