"""`phikit run | report | recipes`: whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

recipes_app = typer.Typer(
    help="List the built-in recipes, or show one with all its settings.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A built-in recipe's name, or a YAML file.")
]
_Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")
]


def run_recipe(
    recipe: _Recipe,
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
        typer.Option(metavar="N", help="Replaces the recipe's seed; the run is runs/NAME-seedN."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete the contents of the run directory first.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every artefact against its recorded SHA-256.")
    ] = False,
) -> None:
    """Run a recipe, or go on where its run stopped.

    Stages that are done are skipped; one that was interrupted goes on from its last checkpoint.

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


def write_report(
    directories: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run directories.")],
    against: Annotated[
        str, typer.Option(metavar="STAGE", help="Compare every model with this stage's.")
    ] = "",
    figure: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also draw the first run's figure, as .svg or .png."),
    ] = None,
) -> None:
    """Write report.html of one or more runs, and print its path.

    For several runs of one recipe, also print a table of paired differences across them.

    \b
    phikit report runs/nano --figure nano.svg
    phikit report runs/nano runs/nano-seed1 runs/nano-seed2
    phikit report runs/mixture-ablation* --against both
    """
    from phikit import report

    for directory in directories:
        print(report.write(directory))
    if figure is not None:
        print(report.figure(directories[0], figure))
    if len(directories) > 1 or against:
        print(f"\n{report.seeds(directories, against)}")


def list_recipes() -> None:
    """List the built-in recipes."""
    from phikit.recipes import load

    for name in load.built_in():
        recipe = load.load(name)
        print(f"{name:<12} {len(recipe.stages):>3} stages  {recipe.about}")


def show_recipe(
    name: _Recipe,
    settings: _Settings = None,
) -> None:
    """Print a recipe with every setting written out.

    Its output is a recipe too: edit it and pass the file to `phikit run`.

    \b
    phikit recipes show nano
    phikit recipes show nano --set sft.lr=1e-3
    """
    from phikit.recipes import load, schema

    print(schema.as_yaml(load.load(name, settings or ())), end="")


def add(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.add_typer(recipes_app, name="recipes")
    app.command("run", no_args_is_help=True)(run_recipe)
    app.command("report", no_args_is_help=True)(write_report)
    recipes_app.command("list")(list_recipes)
    recipes_app.command("show", no_args_is_help=True)(show_recipe)
