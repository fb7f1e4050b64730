"""Frameworks that keep their queues, locks and channels in Redis run behind the proxy as they are."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import redis

from tests.harness import Up, until, up

PROGRAMS = Path(__file__).parent / "programs"
PATIENCE_S = 60

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("endpoint"), "--port", "0", "--admin-port", "0") as running:
        yield running


@pytest.fixture
def client(endpoint: Up) -> Iterator[redis.Redis]:
    with endpoint.client() as connection:
        connection.flushall()
        yield connection


@pytest.fixture
def environment(endpoint: Up, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("REDIS_URL", endpoint.redis_url)
    monkeypatch.syspath_prepend(str(PROGRAMS))
    return {**os.environ, "PYTHONPATH": str(PROGRAMS), "REDIS_URL": endpoint.redis_url}


@contextmanager
def running(environment: dict[str, str], log: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    except BaseException:
        print(log.read_text()[-4000:])
        raise
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()


def fresh(name: str) -> ModuleType:
    """The program's module, with this test's endpoint."""
    sys.modules.pop(name, None)
    return __import__(name)


def test_celery_runs_tasks_chords_and_retries(client: redis.Redis, environment: dict[str, str], tmp_path: Path) -> None:
    celery = pytest.importorskip("celery")
    program = fresh("celery_app")
    worker = ("celery", "-A", "celery_app", "worker", "--pool", "threads", "-c", "4", "--without-mingle", "-l", "info")
    with running(environment, tmp_path / "worker.log", *worker):
        assert program.add.delay(2, 3).get(timeout=PATIENCE_S) == 5
        many = celery.group(program.add.s(at, at) for at in range(50)).apply_async()
        assert many.get(timeout=PATIENCE_S) == [2 * at for at in range(50)]
        header = [program.add.s(at, 1) for at in range(20)]
        assert celery.chord(header)(program.total.s()).get(timeout=PATIENCE_S) == sum(range(1, 21))
        assert program.third_time.delay().get(timeout=PATIENCE_S) == 2
        later = program.add.apply_async((1, 1), countdown=0.2)
        assert later.get(timeout=PATIENCE_S) == 2
    assert client.llen("{celery}celery") == 0


def test_dramatiq_runs_every_message_and_tries_again(
    client: redis.Redis, environment: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("dramatiq")
    program = fresh("dramatiq_app")
    for number in range(100):
        program.work.send(number)
    worker = ("dramatiq", "dramatiq_app", "--processes", "1", "--threads", "4")
    with running(environment, tmp_path / "worker.log", *worker):
        until(lambda: client.scard("done") == 100, "every message is done")
    assert {int(each) for each in client.smembers("failed-once")} == set(range(0, 100, 7))


def test_channels_hand_messages_to_groups(endpoint: Up, client: redis.Redis) -> None:
    """Django Channels' layer on pub/sub."""
    pubsub = pytest.importorskip("channels_redis.pubsub")

    async def talk() -> None:
        # Two layers, as two server processes have them.
        one, two = (pubsub.RedisPubSubChannelLayer(hosts=[endpoint.redis_url], prefix="{channels}") for _ in range(2))
        names = [await layer.new_channel() for layer in (one, two, two)]
        for layer, name in zip((one, two, two), names, strict=True):
            await layer.group_add("room", name)
        for at in range(20):
            await one.group_send("room", {"type": "chat", "at": at})
            for layer, name in zip((one, two, two), names, strict=True):
                message = await asyncio.wait_for(layer.receive(name), PATIENCE_S)
                assert message["at"] == at
        await two.send(names[0], {"type": "chat", "text": "to one alone"})
        assert (await asyncio.wait_for(one.receive(names[0]), PATIENCE_S))["text"] == "to one alone"
        await one.group_discard("room", names[0])
        await two.group_send("room", {"type": "chat", "at": -1})
        assert (await asyncio.wait_for(two.receive(names[1]), PATIENCE_S))["at"] == -1
        for layer in (one, two):
            await layer.flush()

    asyncio.run(talk())


def test_channels_other_layer_calls_scripts_that_do_not_name_their_keys(endpoint: Up, client: redis.Redis) -> None:
    """Its keys share a slot if told to, but the script that cleans up names none: as on any cluster, no."""
    core = pytest.importorskip("channels_redis.core")

    async def talk() -> None:
        layer = core.RedisChannelLayer(hosts=[endpoint.redis_url], prefix="{channels}")
        name = await layer.new_channel()
        await layer.send(name, {"type": "chat"})
        await layer.receive(name)

    with pytest.raises(redis.ResponseError, match="non local key"):
        asyncio.run(talk())


def test_a_lock_lets_one_in_at_a_time(endpoint: Up, client: redis.Redis) -> None:
    """redis-py's Lock with many takers: a counter that only whoever holds it reads and writes."""
    client.set("counter", 0)

    def count() -> None:
        with endpoint.client() as own:
            for _ in range(20):
                with own.lock("lock", timeout=PATIENCE_S, sleep=0.002):
                    own.set("counter", int(own.get("counter") or 0) + 1)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.get("counter") == "160"


def test_rq_needs_a_slot_of_its_own_which_it_cannot_name(client: redis.Redis, environment: dict[str, str]) -> None:
    """RQ writes its queue and its jobs in one transaction and gives no way to tag their keys: as on any cluster, no."""
    rq = pytest.importorskip("rq")
    with pytest.raises(redis.ResponseError, match="same slot"):
        rq.Queue(connection=redis.Redis.from_url(environment["REDIS_URL"])).enqueue("rq_jobs.double", 21)
