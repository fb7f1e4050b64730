"""The command ``ackgate``.

What lives here: the entry point, the group of subcommands, and how any of them fails: one line on standard error that
starts with ``ackgate:`` and exit status 1 (2 for a misused option), never a traceback for what is the user's to mend.
What may not: a subcommand (``proxy.commands``).
"""

from __future__ import annotations

import platform
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import click

from proxy import __version__
from proxy.commands.common import explanation

# Imported when called for: `ackgate check` need not load an HTTP server.
_COMMANDS = {name: name for name in ("up", "proxy", "shard", "status", "switchover", "drill", "trace", "check")}


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(f"proxy.commands.{_COMMANDS[cmd_name]}"), cmd_name)
        return command if isinstance(command, click.Command) else None


def implementations() -> str:
    """How the parts that may be compiled run here: ``codec cython, data plane cython``, or ``python``."""
    codec, dataplane = import_module("proxy.codec"), import_module("proxy.dataplane")
    return f"codec {codec.IMPLEMENTATION}, data plane {dataplane.IMPLEMENTATION}"


def _print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    click.echo(f"ackgate {__version__} ({implementations()}, Python {platform.python_version()})")
    ctx.exit()


@click.command(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def ackgate() -> None:
    """One plain Redis endpoint in front of a sharded, replicated, persistent Valkey cluster."""


def run(args: Sequence[str]) -> int:
    """Runs ``ackgate ARGS`` and returns its exit status. Errors are told on standard error, in one line each."""
    try:
        status = ackgate.main(args=list(args), prog_name="ackgate", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "ackgate"
        return _fail(f"{error.format_message().rstrip('.')}; see {where} --help", error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        return 1  # whoever read our output has gone
    except BaseException as error:
        lines = explanation(error)
        if lines is None:
            if isinstance(error, SystemExit):
                raise
            traceback.print_exception(error)
            return _fail("this is a defect in ackgate, please report it with the lines above", 1)
        for line in lines.splitlines():
            _fail(line, 1)
        return 1


def _fail(message: str, status: int) -> int:
    click.echo(f"ackgate: {message}", err=True)
    return status


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
