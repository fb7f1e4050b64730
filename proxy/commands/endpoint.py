"""Where the proxy is: its admin endpoint, what that says, and the endpoint that clients use."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

import click

from proxy.commands.common import CommandError
from proxy.configfile import read_password
from proxy.settings import AdminSettings, split_address

P = ParamSpec("P")
R = TypeVar("R")
Address = tuple[str, int]

DEFAULT_ADMIN = f"http://{AdminSettings().host}:{AdminSettings().port}"
_TIMEOUT_S = 5.0
_WILDCARDS = ("0.0.0.0", "::")

admin_option = click.option(
    "--admin",
    metavar="URL",
    envvar="ACKGATE_ADMIN",
    default=DEFAULT_ADMIN,
    show_default=True,
    help="Admin endpoint of the proxy.",
)


def endpoint_options(command: Callable[P, R]) -> Callable[P, R]:
    """The options that say where clients connect to; see ``reached`` and ``password_in``."""
    for option in reversed(
        (
            click.option(
                "--url", metavar="URL", help="Endpoint, as redis://HOST:PORT.  [default: what the admin endpoint says]"
            ),
            admin_option,
            click.option(
                "--password-file",
                type=click.Path(),
                metavar="FILE",
                help="File whose first line is the endpoint's password.  [default: $REDISCLI_AUTH, as redis-cli]",
            ),
        )
    ):
        command = option(command)
    return command


def password_in(file: str | None) -> str | None:
    """The endpoint's password; None: it needs none. Raises ``SettingsError`` for a file that cannot be read."""
    return read_password(file) if file is not None else os.environ.get("REDISCLI_AUTH")


def get(admin: str, path: str) -> Any:
    """What the admin endpoint says under ``path``; None for 404."""
    if not admin.startswith(("http://", "https://")):
        raise CommandError(f"{admin!r} is not the URL of an admin endpoint; write it like {DEFAULT_ADMIN}")
    try:
        with urllib.request.urlopen(f"{admin.rstrip('/')}{path}", timeout=_TIMEOUT_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 404:
                return None
            raise CommandError(f"{admin}{path} answers {error.code}; the proxy's log tells why") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise CommandError(
            f"no proxy answers at {admin}: {getattr(reason, 'strerror', None) or reason}; "
            "start one with `ackgate up`, or say where to look with --admin URL"
        ) from None
    except ValueError:
        return None


def topology_at(admin: str) -> dict[str, Any]:
    topology = get(admin, "/topology")
    if not isinstance(topology, dict) or "endpoint" not in topology:
        raise CommandError(f"{admin} is not the admin endpoint of a proxy; look at the ready line for its URL")
    if not any(shard["slots"] for shard in topology["shards"]):
        raise CommandError(f"the proxy at {admin} knows no shard yet; {admin.rstrip('/')}/readyz tells why")
    return topology


def reached(topology: dict[str, Any], admin: str, url: str | None) -> Address:
    """Where clients connect to: ``url``, or else what the admin endpoint said."""
    return endpoint_in(url) if url is not None else endpoint_of(topology, admin)


def endpoint_in(url: str) -> Address:
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port or 6379
    except ValueError:
        host, port = None, 0
    if parts.scheme != "redis" or not host:
        raise CommandError("--url is not the URL of an endpoint; write it like redis://127.0.0.1:6379")
    if parts.password is not None:
        raise CommandError("a password in --url can be read by everybody on this machine; use --password-file")
    return host, port


def endpoint_of(topology: dict[str, Any], admin: str) -> Address:
    host, port = split_address(topology["endpoint"])
    return (urlsplit(admin).hostname or host if host in _WILDCARDS else host), port
