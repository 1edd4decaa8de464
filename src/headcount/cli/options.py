"""Command-line options made from declarations: ``headcount.tasks.sizes``, the tasks' own sizes, the models' options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from headcount.core.options import Option

Options = Callable[[], Iterable[Option]]
"""Called when the command runs or shows its help, so that ``headcount --help`` avoids heavy imports."""


def declared(option: Option, note: str = "") -> Any:
    """The ``typer.Option`` of a declaration, for ``Annotated``; ``note`` is appended to its help.

    >>> declared(Option("bits", "bits of a number.", letter="p"), "By default 8.").help
    'p: bits of a number. By default 8.'
    """
    flag = f"{option.flag}/--{option.off or f'no-{option.name}'}" if option.kind is bool else option.flag
    return typer.Option(flag, help=f"{option.described} {note}".rstrip())


def command(
    app: typer.Typer,
    name: str,
    options: Mapping[str, Options],
    *,
    help: str | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that adds a command whose function takes declared options as keyword arguments ``**sizes``.

    options: maps a parameter of the function (``""``: before the first) to the options listed after it. They default
    to None and are passed to the function only if set. renamed: old spellings of options, ``{"--save": "--out"}``,
    which the command still accepts but does not show in its help.
    """

    def add(function: Callable[..., None]) -> Callable[..., None]:
        class Command(TyperCommand):
            """A command whose parameters are created on first access."""

            made = False

            def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
                return super().parse_args(ctx, respelled(args, renamed or {}))

            def get_params(self, ctx: Any) -> Any:
                if not self.made:
                    whole = typer.Typer(add_completion=False)
                    whole.command(name)(_with(function, options))
                    complete = typer.main.get_command(whole)
                    self.params, self.callback, self.made = complete.params, complete.callback, True
                return super().get_params(ctx)

        def unused() -> None:
            raise AssertionError("the callback is made with the parameters")

        app.command(name, cls=Command, help=help or inspect.getdoc(function))(unused)
        return function

    return add


def respelled(arguments: Iterable[str], renamed: Mapping[str, str]) -> list[str]:
    """The arguments up to ``--`` with each ``renamed`` option replaced by its current name.

    >>> respelled(["qsa", "--save", "a", "--save=b", "--", "--save"], {"--save": "--out"})
    ['qsa', '--out', 'a', '--out=b', '--', '--save']
    """
    words = list(arguments)
    options = words.index("--") if "--" in words else len(words)
    names = [argument.partition("=") for argument in words[:options]]
    return ["".join((renamed.get(name, name), *value)) for name, *value in names] + words[options:]


def _with(function: Callable[..., None], options: Mapping[str, Options]) -> Callable[..., None]:
    """``function`` with its ``**`` argument replaced by the options."""
    signature = inspect.signature(function, eval_str=True)
    parameters = _parameters(options.get("", tuple)())
    for parameter in signature.parameters.values():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        parameters += _parameters(options.get(parameter.name, tuple)())
    named = {name for name, parameter in signature.parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}

    def call(**values: Any) -> None:
        function(**{name: value for name, value in values.items() if name in named or value is not None})

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _parameters(options: Iterable[Option]) -> list[inspect.Parameter]:
    return [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[option.kind | None, declared(option)],
        )
        for option in options
    ]
