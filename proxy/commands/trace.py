"""``ackgate trace``: one write through the running proxy, and the way it took.

It is sent over the endpoint like anybody's, on a connection whose name asks the proxy to time it; what was timed is
read from the admin endpoint, which runs no commands.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any, NamedTuple

import click
import msgspec
import trio
from rich import box
from rich.console import Console
from rich.table import Table

from proxy.codec.request import key_slot
from proxy.commands.common import CommandError
from proxy.commands.endpoint import Address, endpoint_options, get, password_in, reached, topology_at
from proxy.sessions.clients import TRACED
from shard.client import ConnectionLost, ControlConnection, ReplyError, format_address

_CONNECT_TIMEOUT_S = 5.0
_WRITE_TIMEOUT_S = 15.0  # longer than a command is held while its slot has no primary
_TRACE_PATIENCE_S = 5.0  # longer than the proxy follows a write
_LOOK_S = 0.01
_BAR = 40  # columns
_WAY = (
    ("write", "write", "application", "proxy", None),
    ("route", "route", "proxy", "primary", "dispatch"),
    ("done", "done", "primary", "proxy", "execute"),
    ("ack", "ack", "proxy", "application", "relay"),
    ("replicate", "replicate", "primary", "replica", None),
    ("acknowledged", "ack", "replica", "primary", "replicate"),
    ("persist", "persist", "replica", "disk", None),
    ("fsynced", "fsynced", "disk", "replica", "persist"),
)
"""The eight steps: as the proxy names the moment, its name, from, to, and what of the metrics' steps ends there."""


class Waited(NamedTuple):
    """WAIT or WAITAOF behind the write, as the application sees it."""

    command: str
    answer: Any
    error: str | None
    ms: float


class Written(NamedTuple):
    """The write, as the application sees it."""

    client: int
    slot: int
    reply: Any
    ms: float
    waited: list[Waited]


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--wait", type=click.IntRange(0), metavar="N", help="Send WAIT for N replicas behind the write.")
@click.option(
    "--waitaof",
    nargs=2,
    type=click.IntRange(0),
    metavar="L R",
    help="Send WAITAOF behind it, for L (0 or 1) own and R replicas' disks.",
)
@click.option(
    "--timeout", type=click.IntRange(1), default=1000, show_default=True, metavar="MS", help="Of WAIT and WAITAOF."
)
@endpoint_options
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a drawing.")
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [ARG]...")
def trace(
    wait: int | None,
    waitaof: tuple[int, int] | None,
    timeout: int,
    url: str | None,
    admin: str,
    password_file: str | None,
    as_json: bool,
    words: tuple[str, ...],
) -> int:
    """Send one write, such as SET key value, and draw its way: the eight steps with the time each took.

    The write is really made. It has to be a write command whose keys lie in one slot.
    """
    if waitaof is not None and waitaof[0] > 1:
        raise click.UsageError("L of --waitaof is 0 or 1", click.get_current_context())
    topology = topology_at(admin)
    endpoint, password = reached(topology, admin, url), password_in(password_file)
    waits: list[tuple[str | int, ...]] = []
    if wait is not None:
        waits.append(("WAIT", wait, timeout))
    if waitaof is not None:
        waits.append(("WAITAOF", *waitaof, timeout))
    written = trio.run(partial(_write, endpoint, password, words, waits))
    picture = _picture(words, endpoint, written, _traced(admin, written.client))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(picture), indent=2).decode())
    else:
        _draw(picture)
    return 0


# -- the write -----------------------------------------------------------------------------------------------------
async def _write(
    endpoint: Address, password: str | None, words: tuple[str, ...], waits: list[tuple[str | int, ...]]
) -> Written:
    where = f"redis://{format_address(*endpoint)}"
    try:
        connection = await ControlConnection.open(*endpoint, password=password, timeout=_CONNECT_TIMEOUT_S)
        async with connection:
            slot = await _slot(connection, words)
            await connection.call("CLIENT", "SETNAME", TRACED)
            client = int(await connection.call("CLIENT", "ID"))
            started = time.monotonic()
            reply = await connection.call(*words, timeout=_WRITE_TIMEOUT_S)
            took = time.monotonic() - started
            waited = [await _wait(connection, words) for words in waits]
            return Written(client, slot, reply, _ms(took), waited)
    except ConnectionLost as lost:
        raise CommandError(f"{where} does not answer ({lost}); say where the endpoint is with --url") from None
    except ReplyError as error:
        cure = "; give the password with --password-file FILE" if error.code in ("NOAUTH", "WRONGPASS") else ""
        raise CommandError(f"{where} answers: {error}{cure}") from None


async def _slot(connection: ControlConnection, words: tuple[str, ...]) -> int:
    """The slot of what is to be written; raises what is wrong with it."""
    name = words[0].lower()
    names = [name, f"{name}|{words[1].lower()}"] if len(words) > 1 else [name]
    described = [each for each in await connection.call("COMMAND", "INFO", *names) if each]
    if not described:
        raise CommandError(f"{words[0]!r} is not a command of the engine")
    flags = {flag.decode() for flag in described[-1][2]}
    if "write" not in flags:
        raise CommandError(f"{words[0].upper()} is not a write command; trace follows one write, such as SET key value")
    try:
        keys = await connection.call("COMMAND", "GETKEYS", *words)
    except ReplyError as error:
        text = str(error).removeprefix("ERR ")
        raise CommandError(f"{words[0].upper()} cannot be traced: {text[:1].lower()}{text[1:]}") from None
    slots = {key_slot(key) for key in keys}
    if len(slots) > 1:
        raise CommandError("the keys lie in several slots; trace follows a write to one, as with {tag}one {tag}two")
    return slots.pop()


async def _wait(connection: ControlConnection, words: tuple[str | int, ...]) -> Waited:
    started = time.monotonic()
    answer, problem = None, None
    try:
        answer = await connection.call(*words, timeout=int(words[-1]) / 1000 + _CONNECT_TIMEOUT_S)
    except ReplyError as error:
        problem = str(error)
    return Waited(" ".join(map(str, words)), answer, problem, _ms(time.monotonic() - started))


def _traced(admin: str, client: int) -> dict[str, Any]:
    """What the proxy timed, once it has followed the write to its end."""
    deadline = time.monotonic() + _TRACE_PATIENCE_S
    while time.monotonic() < deadline:
        traced = get(admin, f"/traces/{client}")
        if isinstance(traced, dict) and traced["complete"]:
            return traced
        time.sleep(_LOOK_S)
    raise CommandError(
        "the write was made, and the proxy did not time it: it was redirected, went a way of its own, or another trace "
        "was under way; try again"
    )


# -- the picture ---------------------------------------------------------------------------------------------------
def _ms(seconds: float | None) -> Any:
    return None if seconds is None else round(seconds * 1000, 3)


def _picture(words: tuple[str, ...], endpoint: Address, written: Written, traced: dict[str, Any]) -> dict[str, Any]:
    shard, at = traced["shard"], traced["at"]
    seen = {replica["address"]: replica for replica in traced["replicas"]}
    known = [replica["address"] for replica in shard["replicas"]]
    return {
        "command": words[0].upper(),
        "reply": _readable(written.reply),
        "endpoint": format_address(*endpoint),
        "slot": written.slot,
        "shard": shard["id"],
        "primary": shard["primary"]["address"] if shard["primary"] is not None else None,
        "offset": traced["offset"],
        "steps_ms": {name: _ms(seconds) for name, seconds in traced["steps"].items()},
        "way": [
            {"number": number, "name": name, "from": source, "to": target, "step": step, "at_ms": _ms(at[moment])}
            for number, (moment, name, source, target, step) in enumerate(_WAY, 1)
        ],
        "replicas": [
            {
                "address": address,
                "acknowledged_ms": _ms(seen[address]["at"]) if address in seen else None,
                "offset": seen[address]["offset"] if address in seen else None,
            }
            for address in dict.fromkeys([*known, *seen])
        ],
        "fsync": {
            "primary_ms": _ms(traced["fsync"]["primary"]),
            "replicas_ms": [_ms(seconds) for seconds in traced["fsync"]["replicas"]],
        },
        "round_trip_ms": written.ms,
        "waits": [wait._asdict() for wait in written.waited],
        "notes": traced["notes"],
    }


def _readable(reply: Any) -> Any:
    if isinstance(reply, bytes):
        return reply.decode("utf-8", "replace")
    return [_readable(each) for each in reply] if isinstance(reply, list) else reply


def _draw(picture: dict[str, Any]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # as `ackgate status` does: a file or a pipe has no width
    console.print(
        f"{picture['command']} by {picture['endpoint']}: slot {picture['slot']}, primary {picture['primary']}, "
        f"shard {picture['shard']}",
        markup=False,
    )
    console.print(_table(picture))
    for line in _lines(picture):
        console.print(line, markup=False)
    for note in picture["notes"]:
        console.print(note, style="yellow", markup=False)


def _table(picture: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for title, justify in (("step", "left"), ("from", "right"), ("to", "left"), ("at ms", "right")):
        table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for title, justify in (("took ms", "right"), ("", "left"), ("", "left")):
        table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    end = max(row["at_ms"] or 0.0 for row in picture["way"])
    for row in picture["way"]:
        took = picture["steps_ms"].get(row["step"])
        table.add_row(
            f"{row['number']} {row['name']}",
            row["from"],
            f"-> {row['to']}",
            _number(row["at_ms"]),
            _number(took) if row["step"] else "",
            row["step"] or "",
            f"[green]{_bar(row['at_ms'] - took, took, end)}[/green]" if took is not None else "",
        )
    return table


def _number(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:.3f}"


def _bar(begin: float, length: float, end: float) -> str:
    """A stretch of time, to scale; the shortest can still be seen."""
    scale = _BAR / end if end else 0.0
    return " " * min(_BAR - 1, int(begin * scale)) + "━" * max(1, round(length * scale))


def _lines(picture: dict[str, Any]) -> list[str]:
    lines = []
    for replica in picture["replicas"]:
        had = f"acknowledged offset {replica['offset']} at {_number(replica['acknowledged_ms'])} ms"
        lines.append(f"replica {replica['address']}: {had if replica['offset'] is not None else 'no acknowledgment'}")
    if not picture["replicas"]:
        lines.append("the shard has no replica")
    fsync = picture["fsync"]
    if fsync["primary_ms"] is not None:
        lines.append(f"on the primary's disk: known at {_number(fsync['primary_ms'])} ms")
    if fsync["replicas_ms"]:
        times = ", ".join(map(_number, fsync["replicas_ms"]))
        lines.append(f"on replicas' disks: known at {times} ms (the engine tells how many, not which)")
    for wait in picture["waits"]:
        answer = wait["answer"] if wait["error"] is None else wait["error"]
        lines.append(f"{wait['command']} answered {answer} after {_number(wait['ms'])} ms")
    lines.append(f"the application had its reply after {_number(picture['round_trip_ms'])} ms")
    return lines
