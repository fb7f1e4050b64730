"""Real clients, in their plain, non-cluster mode and with their defaults, work unchanged."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import pytest
import redis
import redis.asyncio
import valkey

from tests.harness import Up
from tests.system.beside import primaries
from tests.system.wire import Wire

NODE = Path(__file__).parent / "node"
PATIENCE_S = 120


def tool(name: str) -> str:
    """The path of a program that the test needs; in CI it has to be there."""
    path = shutil.which(name)
    if path is None and "CI" not in os.environ:
        pytest.skip(f"{name} is not installed")
    assert path is not None, f"{name} is not installed"
    return path


def port_of(endpoint: Up) -> str:
    return str(urlsplit(endpoint.redis_url).port)


def run(*command: str, text: str | bytes = b"", folder: Path | None = None) -> str:
    """What the program says; it has to end well."""
    data = text.encode() if isinstance(text, str) else text
    ended = subprocess.run(command, input=data, capture_output=True, timeout=PATIENCE_S, cwd=folder)
    assert ended.returncode == 0, f"{command}\n{ended.stdout.decode()}\n{ended.stderr.decode()}"
    return ended.stdout.decode()


# -- redis-benchmark ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("-P", "16"), ("-3",), ("-r", "1000", "-d", "2000", "-P", "4")], ids=" ".join)
def test_redis_benchmark_runs_all_its_default_tests(endpoint: Up, wire: Wire, options: tuple[str, ...]) -> None:
    said = run(tool("redis-benchmark"), "-p", port_of(endpoint), "-q", "-n", "400", "-c", "20", *options)
    done = re.findall(r"(\w[\w ().]+): [\d.]+ requests per second", said)
    assert len(done) >= 18, said
    assert not re.search("error|warning", said, re.IGNORECASE), said


def test_redis_benchmark_spreads_random_keys_over_all_shards(endpoint: Up, wire: Wire) -> None:
    run(tool("redis-benchmark"), "-p", port_of(endpoint), "-q", "-n", "2000", "-r", "100000", "-t", "set", "-P", "50")
    for address in primaries(endpoint):
        host, _, port = address.rpartition(":")
        with redis.Redis(host, int(port)) as node:
            assert node.dbsize() > 400


# -- redis-cli ---------------------------------------------------------------------------------------------------------


def test_redis_cli_takes_commands_from_its_arguments_and_its_input(endpoint: Up, wire: Wire) -> None:
    cli = [tool("redis-cli"), "-p", port_of(endpoint)]
    assert run(*cli, "SET", "user:1", "Ada") == "OK\n"
    assert run(*cli, "MSET", "user:3", "Grace", "user:4", "Edsger") == "OK\n"
    assert run(*cli, "MGET", "user:1", "user:3", "user:4", "no") == "Ada\nGrace\nEdsger\n\n"
    assert run(*cli, "DBSIZE") == "3\n"
    typed = ["SET paid:1 yes", "WAIT 1 10000", "WAITAOF 1 1 10000", "MULTI", "INCR n", "EXEC", "NOSUCH", "GET paid:1"]
    said = run(*cli, text="\n".join(typed)).splitlines()
    assert said[:7] == ["OK", "1", "1", "1", "OK", "QUEUED", "1"]
    assert said[7:] == ["ERR unknown command 'NOSUCH', with args beginning with: ", "", "yes"]
    assert run(*cli, "-n", "5", "SET", "five", "5") == "OK\n"
    assert run(*cli, "EXISTS", "five") == "0\n"
    assert run(*cli, "-3", "HSET", "h", "f", "v") == "1\n"
    assert run(*cli, "-3", "HGETALL", "h").split() == ["f", "v"]
    assert run(*cli, "-x", "SET", "piped", text=bytes(range(256))) == "OK\n"
    assert run(*cli, "STRLEN", "piped") == "256\n"


def test_redis_cli_scans_counts_and_runs_scripts(endpoint: Up, wire: Wire, tmp_path: Path) -> None:
    cli = [tool("redis-cli"), "-p", port_of(endpoint)]
    wire.call("MSET", *(word for at in range(500) for word in (f"key:{at}", "v")))
    assert sorted(run(*cli, "--scan").split()) == sorted(f"key:{at}" for at in range(500))
    assert len(run(*cli, "--scan", "--pattern", "key:1??").split()) == 100
    assert "Sampled 500 keys" in run(*cli, "--bigkeys")
    script = tmp_path / "script.lua"
    script.write_text("return {KEYS[1], ARGV[1]}")
    assert run(*cli, "--eval", str(script), "key", ",", "value") == "key\nvalue\n"
    assert "redis_version" in run(*cli, "INFO")


def test_redis_cli_loads_in_bulk_through_a_pipe(endpoint: Up, wire: Wire) -> None:
    requests = "".join(f"SET bulk:{at} {at}\r\n" for at in range(5000)) + "LPUSH bulk:1 x\r\n"
    command = [tool("redis-cli"), "-p", port_of(endpoint), "--pipe"]
    ended = subprocess.run(command, input=requests, capture_output=True, text=True, timeout=PATIENCE_S)
    assert "errors: 1, replies: 5001" in ended.stdout, ended
    assert wire.call("DBSIZE") == b":5000\r\n"


# -- Python ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("library", [redis, valkey], ids=["redis-py", "valkey-py"])
def test_python_clients(endpoint: Up, wire: Wire, library: ModuleType, protocol: int) -> None:
    url = endpoint.redis_url if library is redis else endpoint.redis_url.replace("redis:", "valkey:")
    client = (library.Redis if library is redis else library.Valkey).from_url(
        url, decode_responses=True, protocol=protocol, client_name="smoke", health_check_interval=1
    )
    with client:
        assert client.ping()
        assert client.set("a", 1, ex=1000) and client.get("a") == "1"
        assert client.mset({f"order:{at}": at for at in range(1000)})
        assert client.mget("order:1", "order:999", "no") == ["1", "999", None]
        assert client.delete(*(f"order:{at}" for at in range(0, 1000, 2))) == 500
        assert len(list(client.scan_iter(match="order:*", count=100))) == 500
        assert len(client.keys("order:*")) == 500 and client.dbsize() == 501
        client.hset("h", mapping={"f": "v", "g": "w"})
        assert client.hgetall("h") == {"f": "v", "g": "w"}
        client.zadd("z", {"m": 1.5})
        assert [tuple(each) for each in client.zrange("z", 0, -1, withscores=True)] == [("m", 1.5)]
        assert client.xlen("s") == 0 and client.xadd("s", {"f": "v"})
        with client.pipeline() as pipeline:  # a transaction by default
            assert pipeline.set("{t}a", 1).incr("{t}a").execute() == [True, 2]
        with client.pipeline(transaction=False) as pipeline:
            for at in range(2000):
                pipeline.incr(f"n:{at}")
            assert pipeline.execute() == [1] * 2000
        with pytest.raises(library.ResponseError, match="hash to the same slot"), client.pipeline() as pipeline:
            pipeline.set("a", 1).set("b", 1).execute()

        def double(pipeline: redis.client.Pipeline) -> None:
            found = int(pipeline.get("{t}a") or 0)
            pipeline.multi()
            pipeline.set("{t}a", found * 2)

        assert client.transaction(double, "{t}a") == [True] and client.get("{t}a") == "4"
        with client.lock("lock", timeout=60):
            assert not client.lock("lock", timeout=60, blocking=False).acquire()
        assert client.register_script("return redis.call('get', KEYS[1])")(keys=["a"]) == "1"
        with pytest.raises(library.ResponseError, match="WRONGTYPE"):
            client.lpush("a", 1)
        client.rpush("l", "x")
        assert list(client.blpop(["l"], 1)) == ["l", "x"]
        assert client.info()["role"] == "master"
        assert client.client_getname() == "smoke"
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.time()[0] > 0 and client.command_count() > 200


@pytest.mark.parametrize("protocol", [2, 3])
def test_wait_is_about_one_connection(endpoint: Up, wire: Wire, protocol: int) -> None:
    with redis.Redis.from_url(endpoint.redis_url, protocol=protocol, single_connection_client=True) as client:
        client.mset({f"order:{at}": at for at in range(100)})
        assert client.wait(1, 10_000) == 1
        assert client.waitaof(1, 1, 10_000) == [1, 1]


def test_redis_py_in_asyncio_with_many_at_once(endpoint: Up, wire: Wire) -> None:
    async def main() -> None:
        async with redis.asyncio.Redis.from_url(endpoint.redis_url, decode_responses=True) as client:
            await asyncio.gather(*(client.set(f"k{at}", at) for at in range(90)))
            assert await asyncio.gather(*(client.get(f"k{at}") for at in range(90))) == [str(at) for at in range(90)]
            async with client.pipeline() as pipeline:
                assert await pipeline.incr("n").incr("n").execute() == [1, 2]

    asyncio.run(main())


# -- npm ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def modules(request: pytest.FixtureRequest) -> Path:
    """A folder, kept between runs, with the clients installed as the lock file says."""
    npm = tool("npm")
    assert request.config.cache is not None
    folder = request.config.cache.mkdir("node")
    lock = (NODE / "package-lock.json").read_bytes()
    installed = folder / "installed"
    fresh = installed.exists() and installed.read_bytes() == lock
    for file in NODE.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    if not fresh:
        command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S)
        if ended.returncode and "CI" not in os.environ:
            pytest.skip(f"npm could not install the clients: {ended.stderr.strip()[-300:]}")
        assert ended.returncode == 0, ended.stderr
        installed.write_bytes(lock)
    return folder


@pytest.mark.parametrize("program", ["node-redis.js", "ioredis.js"])
def test_clients_from_npm(endpoint: Up, wire: Wire, modules: Path, program: str) -> None:
    assert run(tool("node"), program, endpoint.redis_url, folder=modules) == "fine\n"


@pytest.mark.slow
@pytest.mark.parametrize("program", ["flows-node-redis.js", "flows-ioredis.js"])
def test_what_applications_do_with_clients_from_npm(
    endpoint: Up, direct: int, wire: Wire, modules: Path, program: str
) -> None:
    for url in (f"redis://127.0.0.1:{direct}", endpoint.redis_url):
        assert run(tool("node"), program, url, folder=modules) == "fine\n"
