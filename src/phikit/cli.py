"""`phikit ...`: parses, calls, prints. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from phikit import __version__
from phikit.commands import (
    data,
    family,
    generate,
    looking,
    pivots,
    planning,
    quantize,
    runs,
    serve,
    stages,
    synth,
    talk,
)
from phikit.errors import PhikitError

_EPILOG = """\b
A first run, about six minutes on two cores:
  phikit run nano
  phikit chat runs/nano
\b
One stage alone:
  phikit train                 list the stages of the group
  phikit train sft             show the settings of one
  phikit train sft --input model=DIR --input samples=DIR --set lr=1e-4 --out DIR
  torchrun --nproc-per-node 2 -m phikit train sft ...      in several processes
"""


class _PlainErrors(TyperGroup):
    """Prints what the user can put right without a traceback; anything else is a bug and keeps it.

    Exit status: 2 for an error, 130 for Ctrl-C.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PhikitError as e:
            print(f"error: {e}", file=sys.stderr)
            raise typer.Exit(2) from e
        except KeyboardInterrupt as e:
            print("\nstopped; run the same command again to go on", file=sys.stderr)
            raise typer.Exit(130) from e


app = typer.Typer(
    cls=_PlainErrors,
    help="phikit: every model of the Phi-4 family, and the system that makes them.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"phikit {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """Options of the program itself; `help` above is what its page says."""


for _commands in (runs, talk, generate, serve, family, planning, quantize):
    _commands.add(app)
GROUPS = stages.add(app)  # by name; a package's own commands are added to its group
data.add(GROUPS["data"])
looking.add(GROUPS["data"])
pivots.add(GROUPS["pivots"])
synth.add(GROUPS["synth"])


def main() -> None:
    """The console script."""
    app()
