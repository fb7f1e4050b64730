"""Configuration files: what is accepted, and how faults are told."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from proxy.configfile import Fault, SettingsError, load, load_any, parse_duration, parse_size, read_password
from proxy.settings import MB, LocalSettings, ProxySettings, SeedSettings, in_front_of, split_address
from shard.settings import ClusterSettings

CONFIG = Path(__file__).parents[2] / "config"
SEEDS = "cluster: {seeds: ['127.0.0.1:7000']}\n"


def faults(tmp_path: Path, text: str, kind: Any = ProxySettings) -> list[Fault]:
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(path, kind)
    return caught.value.faults


def accepted(tmp_path: Path, text: str) -> ProxySettings:
    path = tmp_path / "some.yaml"
    path.write_text(SEEDS + text)
    return load(path, ProxySettings)


def keys_of(kind: type[msgspec.Struct], prefix: str = "") -> set[str]:
    found = set()
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            found |= keys_of(field.type, f"{prefix}{field.name}.")
        else:
            found.add(prefix + field.name)
    return found


def keys_in(tree: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for name, value in tree.items():
        found |= keys_in(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name}
    return found


def test_the_proxy_example_holds_every_setting_with_its_default() -> None:
    assert keys_in(yaml.safe_load((CONFIG / "proxy.yaml").read_text())) == keys_of(ProxySettings)
    shown = load(CONFIG / "proxy.yaml", ProxySettings)
    assert shown.cluster.seeds, "the one setting without a default is shown by example"
    assert msgspec.structs.replace(shown, cluster=msgspec.structs.replace(shown.cluster, seeds=())) == ProxySettings()


def test_the_local_example_holds_every_setting_with_its_default() -> None:
    assert keys_in(yaml.safe_load((CONFIG / "local.yaml").read_text())) == keys_of(LocalSettings)
    assert load(CONFIG / "local.yaml", LocalSettings) == LocalSettings()


@pytest.mark.parametrize("name", ["proxy.yaml", "local.yaml"])
def test_every_setting_of_the_examples_is_commented(name: str) -> None:
    lines = (CONFIG / name).read_text().splitlines()
    bare = [
        line for above, line in pairwise(lines) if line.strip() and line.startswith("  ") and "#" not in above + line
    ]
    assert [line for line in bare if not line.rstrip().endswith(":")] == []


def test_rules_of_durability_are_a_list_of_groups(tmp_path: Path) -> None:
    found = accepted(tmp_path, "durability: [{prefix: 'order:', fsync: both, timeout: 500ms}, {replicas: 1}]\n")
    one, other = found.durability
    assert (one.prefix, one.fsync, one.timeout, one.replicas) == ("order:", "both", 0.5, 0)
    assert (other.user, other.prefix, other.replicas, other.on_timeout) == (None, None, 1, "error")


@pytest.mark.parametrize(
    ("rules", "key", "cure"),
    [
        ("[{fsync: sometimes}]", "durability[0].fsync", "one of none, local, replica, both"),
        ("[{replicas: 1}, {replica: 1}]", "durability[1].replica", "did you mean replicas?"),
        ("[{timeout: 0}]", "durability[0].timeout", "a duration"),
        ("[fast]", "durability[0]", "write its settings below it"),
        ("{replicas: 1}", "durability", "a list of which each is a group of settings"),
    ],
)
def test_a_fault_in_a_rule_names_the_rule(tmp_path: Path, rules: str, key: str, cure: str) -> None:
    (fault,) = faults(tmp_path, f"{SEEDS}durability: {rules}\n")
    assert (fault.key, cure in fault.cure) == (key, True), fault


def test_the_kind_of_a_file_is_recognised(tmp_path: Path) -> None:
    assert isinstance(load_any(CONFIG / "proxy.yaml"), ProxySettings)
    assert isinstance(load_any(CONFIG / "local.yaml"), LocalSettings)
    other = tmp_path / "x.yaml"
    other.write_text("cluster: {shards: 4}")
    assert load_any(other) == LocalSettings(cluster=ClusterSettings(shards=4))
    other.write_text(SEEDS)
    assert isinstance(load_any(other), ProxySettings)


def test_an_empty_local_file_is_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "local.yaml"
    path.write_text("# nothing\ncluster:\n")
    assert load(path, LocalSettings) == LocalSettings()


@pytest.mark.parametrize(("text", "workers"), [("auto", "auto"), ("'auto'", "auto"), ("4", 4)])
def test_workers_are_a_number_or_a_word(tmp_path: Path, text: str, workers: int | str) -> None:
    path = tmp_path / "local.yaml"
    path.write_text(f"proxy: {{workers: {text}}}\n")
    assert load(path, LocalSettings).proxy.workers == workers


def test_a_plain_off_is_the_word_off(tmp_path: Path) -> None:
    path = tmp_path / "local.yaml"
    path.write_text("cluster:\n  aof: off\n  zones: [no, yes]\n")
    cluster = load(path, LocalSettings).cluster
    assert (cluster.aof, cluster.zones) == ("off", ["no", "yes"])


@pytest.mark.parametrize(
    ("text", "size"), [("64", 64), ("64kb", 65536), ("1mb", MB), ("1GB", 1024 * MB), ("1k", 1000), ("2 mb", 2 * MB)]
)
def test_sizes(tmp_path: Path, text: str, size: int) -> None:
    assert parse_size(text) == size
    assert accepted(tmp_path, f"clients: {{output_limit: {text}}}").clients.output_limit == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("2", 2.0), ("0.5", 0.5), ("500ms", 0.5), ("10s", 10.0), ("5m", 300.0), ("1h", 3600.0)]
)
def test_durations(tmp_path: Path, text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert accepted(tmp_path, f"timeouts: {{hold: {text}}}").timeouts.hold == seconds


@pytest.mark.parametrize(
    ("text", "line", "key", "what", "cure"),
    [
        ("listn:\n  port: 1", 2, "listn", "unknown setting", "did you mean listen?"),
        ("clients:\n\n  max_clients: 1", 4, "clients.max_clients", "unknown setting", "did you mean maxclients?"),
        ("acks:\n  zzz: 1", 3, "acks.zzz", "unknown setting", "remove it; known here: untrusted_waitaof"),
        (
            "listen:\n  port: 70000",
            3,
            "listen.port",
            "'70000' is not allowed here",
            "a whole number from 0 to 65535 (default 6379)",
        ),
        ("listen:\n  port: abc", 3, "listen.port", "'abc' is not allowed here", "a whole number from 0 to 65535"),
        ("listen:\n  port: true", 3, "listen.port", "'true' is not allowed here", "a whole number"),
        ("listen:\n  port:", 3, "listen.port", "null is not allowed here", "a whole number"),
        ("listen:\n  host: ''", 3, "listen.host", "'' is not allowed here", "text (default 127.0.0.1)"),
        ("listen: 6379", 2, "listen", "holds '6379' where settings are expected", "indented"),
        (
            "timeouts:\n  hold: 0",
            3,
            "timeouts.hold",
            "'0' is not allowed here",
            "a duration like 2, 0.5, 500ms or 10s, above 0 (default 10.0)",
        ),
        ("timeouts:\n  hold: .inf", 3, "timeouts.hold", "'.inf' is not allowed here", "a duration"),
        ("clients:\n  idle_timeout: soon", 3, "clients.idle_timeout", "'soon'", "(0 is never) (default 0.0)"),
        ("clients:\n  query_limit: 12 parsecs", 3, "clients.query_limit", "'12 parsecs'", "a size like 65536, 64kb"),
        ("clients:\n  query_limit: [1]", 3, "clients.query_limit", "a list is not allowed here", "a size"),
        ("workers: many", 2, "workers", "'many' is not", "write a whole number from 1 to 128 or auto (default 1)"),
        ("workers: 0", 2, "workers", "'0' is not allowed here", "a whole number from 1 to 128 or auto"),
        ("log: {level: loud}", 2, "log.level", "'loud'", "one of debug, info, warning, error (default info)"),
        (
            "commands:\n  allow: debug",
            3,
            "commands.allow",
            "'debug' is not allowed here",
            "a list of which each is text",
        ),
        (
            "lanes:\n  reconnect_min: 3",
            3,
            "lanes.reconnect_min",
            "is larger than reconnect_max",
            "make it smaller or equal",
        ),
        ("listen: {port: 1}\nlisten: {port: 2}", 3, "listen", "is given twice", "remove one of them"),
        ("log: [", 2, "", "not valid YAML", "check the indentation"),
        ("log: !!python/object/apply:os.system [id]", 2, "log", "holds a list where", "settings"),
    ],
)
def test_a_fault_names_line_key_and_cure(tmp_path: Path, text: str, line: int, key: str, what: str, cure: str) -> None:
    (fault,) = faults(tmp_path, SEEDS + text)
    assert (fault.line, fault.key) == (line, key)
    assert what in fault.what
    assert cure in fault.cure


@pytest.mark.parametrize("seed", ["nowhere", "host:", ":1", "host:0", "host:65536", "host:port", "a b:1", "::1:7000"])
def test_a_seed_must_be_host_and_port(tmp_path: Path, seed: str) -> None:
    (fault,) = faults(tmp_path, f"cluster:\n  seeds:\n    - '{seed}'\n")
    assert fault.key == "cluster.seeds"
    assert "host:port, as in 127.0.0.1:7000" in fault.cure


@pytest.mark.parametrize("text", ["", "cluster:", "cluster: {seeds: []}", "listen: {port: 1}"])
def test_a_proxy_needs_a_seed(tmp_path: Path, text: str) -> None:
    (fault,) = faults(tmp_path, text)
    assert fault.key == "cluster.seeds"
    assert "127.0.0.1:7000" in fault.cure


def test_all_faults_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = SEEDS + "log:\n  level: loud\n  colour: red\nlisten:\n  port: -1\nnonsense: 1\n"
    found = faults(tmp_path, text)
    assert [(fault.line, fault.key) for fault in found] == [
        (3, "log.level"),
        (4, "log.colour"),
        (6, "listen.port"),
        (7, "nonsense"),
    ]


def test_a_contradiction_of_the_cluster_is_told_at_its_line(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, "dir: x\ncluster:\n  aof: always\n  shards: 0\n", LocalSettings)
    assert (fault.line, fault.key, fault.what) == (4, "cluster.shards", "must be at least 1, not 0")


def test_a_local_file_may_not_name_seeds(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, "proxy:\n  cluster: {seeds: ['a:1']}\n", LocalSettings)
    assert (fault.line, fault.key, fault.what) == (2, "proxy.cluster", "unknown setting")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 5000, b"x" * (2 << 20)])
def test_no_file_of_any_kind_makes_a_traceback(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError):
        load_any(path)


@pytest.mark.parametrize("path", ["missing.yaml", "."])
def test_an_unreadable_file_is_a_fault(tmp_path: Path, path: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_any(tmp_path / path)
    assert ":1: cannot be read: " in str(caught.value)


def test_a_password_is_the_first_line_and_never_told(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("geheim \r\nsecond line\n")
    assert read_password(str(path)) == "geheim "
    path.write_text("\nhidden\n")
    with pytest.raises(SettingsError) as caught:
        read_password(str(path))
    assert "hidden" not in str(caught.value)
    with pytest.raises(SettingsError):
        read_password(str(tmp_path / "missing"))


def test_the_local_proxy_is_put_in_front_of_its_cluster() -> None:
    local = LocalSettings()
    settings = in_front_of(local.proxy, SeedSettings(seeds=("127.0.0.1:7000",)))
    assert settings.cluster.seeds == ("127.0.0.1:7000",)
    assert settings.listen == local.proxy.listen


@pytest.mark.parametrize(
    ("address", "pair"),
    [("a.b:1", ("a.b", 1)), ("127.0.0.1:65535", ("127.0.0.1", 65535)), ("[::1]:7000", ("::1", 7000))],
)
def test_addresses_are_split(address: str, pair: tuple[str, int]) -> None:
    assert split_address(address) == pair
