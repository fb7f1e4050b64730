"""``ackgate switchover``: have a replica lead its shard, told step by step by the proxy that does it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import click

from proxy.commands.common import CommandError
from proxy.commands.endpoint import DEFAULT_ADMIN, admin_option
from proxy.commands.progress import Progress
from proxy.configfile import read_password

_SILENCE_S = 60.0  # longer than any step takes
_STEPS = {
    "approach": "replica {replica} comes close to {primary}",
    "hold": "commands for the shard are held",
    "pause": "its primary postpones writes",
    "level": "the replica takes in the last of them",
    "promote": "the replica is elected",
    "route": "the nodes agree on it",
    "replica": "commands were held for {held_ms} ms; {replica} comes back as a replica",
}


@click.command()
@click.argument("shard")
@click.option(
    "--to", metavar="NODE", help="The replica: its address, id or the beginning of that.  [default: the furthest]"
)
@click.option(
    "--max-stall",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Seconds for which commands may be held at most; else all is as before.  [default: 3]",
)
@admin_option
@click.option(
    "--token-file", type=click.Path(), metavar="FILE", help="File whose first line is the proxy's admin.token_file's."
)
@click.option("--json", "as_json", is_flag=True, help="JSON, one line a step, instead of text.")
def switchover(
    shard: str, to: str | None, max_stall: float | None, admin: str, token_file: str | None, as_json: bool
) -> int:
    """Have a replica lead its shard in place of the primary: no client sees an error, nothing is lost.

    SHARD is its id, the beginning of that, or the address of one of its nodes, as `ackgate status` shows them. The
    primary of before becomes a replica. What cannot be done within the stall that is allowed is undone.
    """
    order = {"shard": shard, "to": to, "max_stall": max_stall}
    token = read_password(token_file) if token_file is not None else None
    last: dict[str, Any] = {}
    with Progress() as progress:
        for line in give_order(admin, "/switchover", order, token):
            last = line
            if as_json:
                click.echo(json.dumps(line))
            elif line.get("step") in _STEPS:
                progress(_STEPS[line["step"]].format(**line), 0, 0)
    if last.get("error"):
        raise CommandError(last["error"])
    if last.get("result") != "done":
        raise CommandError(f"the proxy at {admin} ended before the switchover did; `ackgate status` shows who leads")
    if not as_json:
        click.echo(
            f"{last['to']} leads shard {last['shard']}, {last['from']} follows it; longest stall: "
            f"{last['stall_ms']:.0f} ms for commands, {last['silence_ms']:.0f} ms for WAIT"
        )
    return 0


def give_order(admin: str, path: str, order: dict[str, Any], token: str | None) -> Iterator[dict[str, Any]]:
    """What the proxy tells of an order, line by line as it comes.  Raises ``CommandError``."""
    if urlsplit(admin).scheme not in ("http", "https"):
        raise CommandError(f"{admin!r} is not the URL of an admin endpoint; write it like {DEFAULT_ADMIN}")
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token is not None else {})
    request = urllib.request.Request(
        f"{admin.rstrip('/')}{path}", json.dumps(order).encode(), headers, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=_SILENCE_S) as answer:
            for line in answer:
                yield json.loads(line)
    except urllib.error.HTTPError as error:
        with error:
            raise CommandError(_reason(error, admin, path)) from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise CommandError(
            f"no proxy answers at {admin}: {getattr(reason, 'strerror', None) or reason}; "
            "start one with `ackgate up`, or say where to look with --admin URL"
        ) from None
    except ValueError:
        raise CommandError(f"{admin} is no admin endpoint of a proxy; look at the ready line for its URL") from None


def _reason(error: urllib.error.HTTPError, admin: str, path: str) -> str:
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError, TypeError):
        return f"{admin}{path} answers {error.code}; is that the admin endpoint of a proxy of this version?"
