"""The ``butterflyc`` command: a file beside this one is a subcommand, found by its name.

Each such file exports ``command``. It imports what it needs inside the function, so that
``--help`` needs neither torch nor tvm. A file whose name starts with ``_`` is no command.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import click

from .. import __version__
from ..compiler.errors import ButterflycError, UsageError, VerificationFailed, unknown_name
from ._output import print_json

INTERRUPTED = 130


class Commands(click.Group):
    """The files of this folder, imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        files = Path(__file__).parent.glob("[!_]*.py")
        return sorted(file.stem for file in files if file.stem != "app")

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        found: click.Command = import_module(f".{cmd_name}", __package__).command
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not args[0].startswith("-") and args[0] not in (known := self.list_commands(ctx)):
            raise unknown_name("command", args[0], known)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="butterflyc", message="%(prog)s %(version)s")
def app() -> None:
    """Compile trained Butterfly mixture-of-experts models for small and large hardware."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the exit status.

    0 ok, 1 bug, 2 usage, 3 unsupported model, 4 does not fit, 5 verification failed, 6 damaged or
    incompatible artefact, 7 toolchain or device missing, 130 interrupted.
    """
    as_json = "--json" in arguments
    try:
        status = app.main(list(arguments), prog_name="butterflyc", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except ButterflycError as error:
        return _report(error, as_json)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return UsageError.exit_status
    except click.ClickException as error:
        return _report(_as_ours(error), as_json)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except Exception as error:
        return _report_bug(error, as_json)


def render(error: ButterflycError, kind: str = "error") -> str:
    """What, where, what to do: the one shape of an error on a terminal."""
    lines = [f"{kind}[{error.code}]: {error.what}"]
    if error.where:
        lines.append(f"  at {error.where}")
    if error.help:
        lines.append(f"  help: {error.help}")
    return "\n".join(lines)


def _report(error: ButterflycError, as_json: bool, kind: str = "error") -> int:
    # A failed verification has its document already, and stdout holds one.
    if as_json and not isinstance(error, VerificationFailed):
        print_json("error", {"error": error.as_dict()})
    click.echo(render(error, kind), err=True)
    return error.exit_status


def _report_bug(error: Exception, as_json: bool) -> int:
    if os.environ.get("BUTTERFLYC_DEBUG") == "1":
        traceback.print_exception(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    bug = ButterflycError(
        f"{type(error).__name__}: {error}",
        where=f"{last.filename}:{last.lineno} in {last.name}",
        help="this is a fault of butterflyc: please report it, with what the same command prints "
        "under BUTTERFLYC_DEBUG=1",
    )
    return _report(bug, as_json, "internal error")


def _as_ours(error: click.ClickException) -> UsageError:
    """A mistake in the command line, in the shape of our own errors."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context else "butterflyc"
    return UsageError(error.format_message(), help=f"`{path} --help` shows what there is")
