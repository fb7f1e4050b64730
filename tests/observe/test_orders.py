"""Who may give the admin port an order."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest
import trio

from proxy.switchover.choice import Refused
from proxy.switchover.switchovers import Report
from tests.observe.test_admin import StubServer, admin

JSON = {"content-type": "application/json"}
ORDER = b'{"shard": "s1", "max_stall": 1.5}'


class Ordering(StubServer):
    def __init__(self, token: str | None = None) -> None:
        super().__init__()
        self.admin_token = token
        self.orders: list[tuple[str, str | None, float | None]] = []

    def switchover(self, shard: str, to: str | None, max_stall: float | None) -> Report:
        if shard != "s1":
            raise Refused("no such shard", 404)
        self.orders.append((shard, to, max_stall))
        report = Report()
        report.add({"step": "hold"})
        report.add({"result": "done"}, last=True)
        return report


async def post(url: str, body: bytes = ORDER, **headers: str) -> tuple[int, str]:
    named = JSON | {name.replace("_", "-"): value for name, value in headers.items()}

    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, named), timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)["error"]

    return await trio.to_thread.run_sync(ask)


async def test_an_order_is_told_line_by_line() -> None:
    server = Ordering()
    async with admin(server) as url:
        status, body = await post(f"{url}/switchover")
    lines = [json.loads(line) for line in body.splitlines()]
    assert status == 200 and [line.get("step") or line["result"] for line in lines] == ["hold", "done"]
    assert all(line["at_ms"] >= 0 for line in lines)
    assert server.orders == [("s1", None, 1.5)]


@pytest.mark.parametrize(
    ("headers", "status", "why"),
    [
        ({"content_type": "text/plain"}, 415, "application/json"),
        ({"content_type": "application/x-www-form-urlencoded"}, 415, "application/json"),
        ({"origin": "http://127.0.0.1"}, 403, "web pages"),
        ({"origin": "null"}, 403, "web pages"),
        ({"host": "evil.example:9121"}, 403, "'evil.example' is not a name of this machine's loopback"),
    ],
)
async def test_a_page_in_a_browser_gives_none(headers: dict[str, str], status: int, why: str) -> None:
    server = Ordering()
    async with admin(server) as url:
        told = await post(f"{url}/switchover", **headers)
    assert told[0] == status and why in told[1]
    assert server.orders == []


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        (b"", 400, "send {"),
        (b"[]", 400, "Expected `object`"),
        (b'{"shard": 1}', 400, "Expected `str`"),
        (b'{"shard": "s1", "force": true}', 400, "unknown field `force`"),
        (b'{"shard": "s2"}', 404, "no such shard"),
        (b'{"shard": "%s"}' % (b"s" * 5000), 413, "4096 bytes at most"),
    ],
)
async def test_what_is_no_order_is_refused_in_one_line(body: bytes, status: int, why: str) -> None:
    server = Ordering()
    async with admin(server) as url:
        told = await post(f"{url}/switchover", body)
    assert told[0] == status and why in told[1] and "\n" not in told[1]
    assert server.orders == []


async def test_with_a_token_it_has_to_be_shown_also_on_this_machine() -> None:
    server = Ordering(token="secret word")
    async with admin(server) as url:
        path = f"{url}/switchover"
        assert (await post(path))[0] == 401
        assert (await post(path, authorization="Bearer secret"))[0] == 401
        assert server.orders == []
        status, _ = await post(path, authorization="Bearer secret word", host="proxy.example:9121")
    assert status == 200 and len(server.orders) == 1


async def test_looking_needs_no_token_and_changes_nothing() -> None:
    server = Ordering(token="secret word")
    async with admin(server) as url:

        def look() -> tuple[int, int]:
            with urllib.request.urlopen(f"{url}/topology", timeout=10) as answer:
                topology = answer.status
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"{url}/switchover", timeout=10)
            with caught.value as answer:
                return topology, answer.code

        assert await trio.to_thread.run_sync(look) == (200, 405)
    assert server.orders == []
