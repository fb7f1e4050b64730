"""``ackgate check``: is a configuration file right, and if not, where and how to mend it."""

from __future__ import annotations

import click

from proxy.configfile import SettingsError, load_any
from proxy.settings import ProxySettings


@click.command()
@click.argument("file", type=click.Path(dir_okay=True))
def check(file: str) -> int:
    """Check a configuration FILE, for `ackgate proxy` or `ackgate up`.

    Each fault is a line "FILE:LINE: key: what is wrong; cure" on standard output, and the exit status 1.
    """
    try:
        settings = load_any(file)
    except SettingsError as error:
        click.echo(error)  # what a checker finds is its output, not its failure
        return 1
    kind, command = ("proxy", "ackgate proxy") if isinstance(settings, ProxySettings) else ("local", "ackgate up")
    click.echo(f"ok: {file} is a {kind} configuration; use it with: {command} --config {file}")
    return 0
