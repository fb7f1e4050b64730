"""The files of deploy/ agree with each other; that they work is what `make compose-test` shows."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.configfile import load
from proxy.settings import ProxySettings
from tests.harness import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE = (DEPLOY / "compose.yaml").read_text()
NOT_IN_ENV = {"ACKGATE_IMAGE", "BASE_IMAGE", "VALKEY_IMAGE", "HAPROXY_IMAGE", "PROM_IMAGE", "GRAFANA_IMAGE"}
OF_OTHER_IMAGES = {"NODE_DIR", "PROM_DIR", "SECRETS"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE)["services"]
    return found


def test_what_may_be_set_stands_in_env_with_the_same_default() -> None:
    used = dict(re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", COMPOSE))
    lines = [line for line in (DEPLOY / ".env").read_text().splitlines() if line and not line.startswith("#")]
    shown = dict(line.split("=", 1) for line in lines)
    assert shown.pop("COMPOSE_PROFILES") == "dashboards"
    assert shown == {name: default for name, default in used.items() if name not in NOT_IN_ENV | OF_OTHER_IMAGES}


def test_proxies_know_the_nodes_that_are_formed(services: dict[str, Any]) -> None:
    nodes = [name for name in services if name.startswith("node-")]
    seeds = [f"{name}:6379" for name in nodes]
    assert list(load(str(DEPLOY / "proxy.yaml"), ProxySettings).cluster.seeds) == seeds
    assert [word for word in services["form"]["command"].split() if ":" in word] == seeds
    assert list(services["form"]["depends_on"]) == nodes
    assert all(services[name]["environment"]["NODE_PEERS"].split() == nodes for name in nodes)
    assert all(services[name]["hostname"] == name for name in nodes)


def test_only_what_is_for_people_is_published_and_on_loopback(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"endpoint", "prometheus", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def make_secrets(folder: Path) -> dict[str, str]:
    result = subprocess.run(
        ["sh", str(DEPLOY / "make-secrets.sh")],
        env=os.environ | {"SECRETS": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout + result.stderr == ""
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_secrets_are_made_once_and_only_their_owner_gets_at_them(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    found = make_secrets(folder)
    assert set(found) == {"engine_password", "endpoint_password", "grafana_password"}
    assert len(set(found.values())) == 3 and all(re.fullmatch(r"[0-9a-f]{48}", value) for value in found.values())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o444}
    (folder / "grafana_password").unlink()
    again = make_secrets(folder)
    assert {name for name in found if found[name] != again[name]} == {"grafana_password"}


def test_what_containers_are_given_they_can_read_however_it_was_cloned(tmp_path: Path) -> None:
    """They run as users of their own; a clone under umask 077 has files for nobody but its owner."""
    clone = tmp_path / "deploy"
    shutil.copytree(DEPLOY, clone, ignore=shutil.ignore_patterns("secrets", "__pycache__"))
    for path in (clone, *clone.rglob("*")):
        path.chmod(0o700 if path.is_dir() or path.suffix == ".sh" else 0o600)
    subprocess.run(["sh", str(clone / "make-secrets.sh")], env={"PATH": os.environ["PATH"]}, check=True)
    found = yaml.safe_load(COMPOSE)
    mounted = {config["file"] for config in found["configs"].values()}
    mounted |= {
        volume.partition(":")[0]
        for service in found["services"].values()
        for volume in service.get("volumes", ())
        if volume.startswith("./")
    }
    paths = [path for name in mounted for path in (clone / name, *(clone / name).rglob("*"))]
    assert paths
    shut = [path for path in paths if path.stat().st_mode & (0o005 if path.is_dir() else 0o004) == 0]
    assert [str(path.relative_to(clone)) for path in shut] == []


def test_the_image_can_read_its_health_check_however_it_was_cloned() -> None:
    """COPY keeps the modes of a clone; only what the build installed or set has its own."""
    *_, last = (DEPLOY / "Dockerfile").read_text().split("\nFROM ")
    assert [line for line in last.splitlines() if line.startswith("COPY") and "--from=" not in line] == []
