"""`phikit ...`: parses, calls, prints. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from phikit.errors import PhikitError

_EPILOG = """\b
A first run, about ten minutes on two cores:
  phikit run nano
  phikit chat runs/nano
\b
One stage alone:
  phikit train                 which stages the package has
  phikit train sft             what its settings are
  phikit train sft --input model=DIR --input samples=DIR --set lr=1e-4 --out DIR
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
recipes_app = typer.Typer(
    help="Whole runs, as files: list the built-in ones, or show one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(recipes_app, name="recipes")

_Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")
]


@app.command("run", no_args_is_help=True)
def run_recipe(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe's name, or a YAML file.")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting: sft.lr=3e-4 (a stage), train.lr=3e-4 (every train stage "
            "that has it), seed=1. Only what depends on it runs again.",
        ),
    ] = None,
    until: Annotated[str, typer.Option(metavar="STAGE", help="Stop after this stage.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the stages and what would run; run nothing.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run directory [runs/NAME].")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="In place of the recipe's seed, in runs/NAME-seedN."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete what the run directory holds first.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every artefact against its recorded SHA-256.")
    ] = False,
) -> None:
    """Run a recipe: whatever is done is skipped, whatever was killed goes on.

    \b
    phikit run nano
    phikit run nano --set sft.lr=3e-4 --until sft
    phikit run nano --dry-run
    phikit run my-recipe.yaml --out /big/disk/mine
    """
    from phikit import progress, run, summary
    from phikit.recipes import load

    checked = load.load(recipe, settings or (), seed)
    directory = out or Path("runs") / (
        checked.name if seed is None else f"{checked.name}-seed{seed}"
    )
    if dry_run:
        print(summary.table(run.preview(checked, directory), checked, directory))
        return
    outcome = run.run(checked, directory, progress.for_terminal(), until, verify, fresh)
    if outcome.ran or not (directory / "report.html").exists():
        from phikit import report

        report.write(directory)
    print(summary.text(directory))


@app.command("report", no_args_is_help=True)
def write_report(
    directory: Annotated[Path, typer.Argument(help="A run directory.")],
) -> None:
    """Write a run's report.html anew and print where it is."""
    from phikit import report

    print(report.write(directory))


@app.command("chat", no_args_is_help=True)
def chat(
    path: Annotated[Path, typer.Argument(help="A model directory, or a run directory.")],
    prompt: Annotated[
        str, typer.Option("-p", "--prompt", metavar="TEXT", help="Answer this and stop.")
    ] = "",
) -> None:
    """Talk to a model: the last one of a run, or any model directory.

    \b
    phikit chat runs/nano
    phikit chat runs/nano -p "Anna has 3 apples and buys 4 more. How many has she?"
    echo "What is 12 + 30?" | phikit chat runs/nano
    """
    from phikit import ledger

    directory = ledger.newest_model(path)
    from phikit import terminal  # takes seconds to import: a wrong path is said at once

    if prompt or not sys.stdin.isatty():
        terminal.answer(directory, prompt or sys.stdin.read())
    else:
        terminal.converse(directory)


@recipes_app.command("list")
def list_recipes() -> None:
    """The recipes that come with phikit."""
    from phikit.recipes import load

    for name in load.built_in():
        recipe = load.load(name)
        print(f"{name:<12} {len(recipe.stages):>3} stages  {recipe.about}")


@recipes_app.command("show", no_args_is_help=True)
def show_recipe(
    name: Annotated[str, typer.Argument(help="A built-in recipe's name, or a YAML file.")],
    settings: _Settings = None,
) -> None:
    """A recipe with every setting written out: the start of one of your own."""
    from phikit.recipes import load, schema

    print(schema.as_yaml(load.load(name, settings or ())), end="")


# --- phikit data, synth, train, ... --------------------------------------------------------------


def _add_package(command: str, package: str, about: str) -> None:
    """Adds `phikit COMMAND [ACTION] ...`, which runs one stage of the package by itself."""

    def one_stage(
        action: Annotated[str, typer.Argument(help="Which stage; lists them when left out.")] = "",
        inputs: Annotated[
            list[str] | None,
            typer.Option("--input", metavar="ROLE=DIR", help="A folder that another stage made."),
        ] = None,
        settings: _Settings = None,
        out: Annotated[
            Path | None, typer.Option(metavar="DIR", help="Where the artefacts go.")
        ] = None,
        seed: Annotated[int, typer.Option(metavar="N", help="Seed of every random stream.")] = 0,
        threads: Annotated[int, typer.Option(metavar="N", help="CPU threads.")] = 2,
        show_help: Annotated[
            bool, typer.Option("-h", "--help", help="Show this, or the settings of ACTION.")
        ] = False,
    ) -> None:
        from phikit import single

        if not action:
            print(single.list_actions(package, command, about))
        elif show_help or out is None:
            print(single.describe(package, command, action))
        else:
            single.run(package, action, inputs or (), settings or (), out, seed, threads)

    app.command(command, help=about, add_help_option=False)(one_stage)


for _command, _package, _about in (
    ("data", "data", "Documents in, training shards out."),
    ("synth", "synth", "Write and check new training data."),
    ("train", "train", "Pretraining, midtraining, SFT, DPO, GRPO."),
    ("pivots", "pivots", "Pivotal Token Search."),
    ("eval", "evals", "Score a model on held-out problems."),
    ("export", "export", "Out to other runtimes, behind a parity gate."),
):
    _add_package(_command, _package, _about)


def main() -> None:
    """The console script."""
    app()
