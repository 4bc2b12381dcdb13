"""`phikit data | synth | train | pivots | eval | export`: one group of commands for each package.

Every stage of the package is a command of its group (`phikit train sft`). A package that has more
to offer adds commands of its own to the group that `add` returns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from phikit.errors import PhikitError

GROUPS = (
    ("data", "data", "Read, clean, mix and tokenise documents; look into a corpus."),
    ("synth", "synth", "Write and check synthetic training data."),
    ("train", "train", "Train: pretraining, midtraining, SFT, DPO, GRPO."),
    ("pivots", "pivots", "Pivotal Token Search, and preference pairs from it."),
    ("eval", "evals", "Score a model on held-out problems."),
    ("export", "export", "Export to other runtimes, checked against them."),
)


class _StageGroup(TyperGroup):
    """A group whose commands are its own and, by their names, the stages of `package`."""

    command = package = about = ""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or self._stage(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from phikit import single

        parts = [f"phikit {self.command}: {self.about}"]
        if self.commands:
            width = max(map(len, self.commands))
            lines = [
                f"  phikit {self.command} {name:<{width}}  {command.get_short_help_str(80)}"
                for name, command in self.commands.items()
            ]
            parts.append("\n".join(["Commands:", *lines]))
        parts.append(single.list_actions(self.package, self.command))
        formatter.write("\n\n".join(parts) + "\n")

    def _stage(self, action: str) -> Any:
        """The command that runs one stage by itself."""

        def one_stage(
            inputs: Annotated[
                list[str] | None,
                typer.Option(
                    "--input", metavar="ROLE=DIR", help="A folder that another stage wrote."
                ),
            ] = None,
            settings: Annotated[
                list[str] | None,
                typer.Option("--set", metavar="KEY=VALUE", help="Change a setting."),
            ] = None,
            verifiers: Annotated[
                list[str] | None,
                typer.Option(
                    "--verifier",
                    metavar="FILE.py:NAME",
                    help="A verifier of your own that the problems name.",
                ),
            ] = None,
            out: Annotated[
                Path | None, typer.Option(metavar="DIR", help="Where the artefacts go.")
            ] = None,
            seed: Annotated[
                int, typer.Option(metavar="N", help="Seed of every random stream.")
            ] = 0,
            threads: Annotated[int, typer.Option(metavar="N", help="CPU threads.")] = 2,
            show_help: Annotated[
                bool, typer.Option("-h", "--help", help="Show this stage's settings.")
            ] = False,
        ) -> None:
            from phikit import single

            if show_help or not (inputs or settings or out):
                print(single.describe(self.package, self.command, action))
            elif out is None:
                raise PhikitError(
                    f"phikit {self.command} {action}: --out is missing",
                    "name a new folder for what the stage writes: --out DIR",
                )
            else:
                single.run(
                    self.package, action, inputs or (), settings or (), out, seed, threads,
                    verifiers=verifiers or (),
                )  # fmt: skip

        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        alone.command(action, add_help_option=False)(one_stage)
        return typer.main.get_command(alone)


def groups() -> dict[str, typer.Typer]:
    """The groups by their names, for `phikit.cli` to add and for packages to add commands to."""
    made = {}
    for command, package, about in GROUPS:
        cls = type(
            f"_{command.title()}Group",
            (_StageGroup,),
            {"command": command, "package": package, "about": about},
        )
        made[command] = typer.Typer(
            cls=cls, help=about, rich_markup_mode=None, invoke_without_command=True
        )
        made[command].callback()(_show_help_when_alone)
    return made


def _show_help_when_alone(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def add(app: typer.Typer) -> dict[str, typer.Typer]:
    """Adds the groups to the program, and returns them by name."""
    made = groups()
    for name, group in made.items():
        app.add_typer(group, name=name)
    return made
