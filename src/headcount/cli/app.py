"""The assembled application. Each command group is a file here with a function ``register(app)``."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

GROUPS: tuple[str, ...] = (
    "model",
    "scratch",
    "results",
    "task",
    "construct",
    "bound",
    "refute",
    "operator",
    "learn",
    "sweep",
    "figure",
    "allocate",
)
"""Modules of this package that add commands, in the order of the help."""

app = typer.Typer(
    name="headcount",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="How much attention does this Transformer need, and can I have the model that has just that?",
)


def _version(asked: bool) -> None:
    if asked:
        from headcount import __version__

        typer.echo(f"headcount {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for _group in GROUPS:
    importlib.import_module(f"headcount.cli.{_group}").register(app)
