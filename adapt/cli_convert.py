"""`adapt convert NAME`: one command a converter, its own options read from its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from adapt.converter import Converter, converter_modules, load_converter
from adapt.errors import UsageError

COMMON = ("raw", "out", "split", "workers", "limit", "max_skips", "overwrite")


class ConverterGroup(TyperGroup):
    """The converters as commands, each made when it is asked for."""

    def list_commands(self, _ctx: Any) -> list[str]:
        """Return the name of every converter that can be loaded."""
        return [name for name in converter_modules() if _can_be_loaded(name)]

    def get_command(self, _ctx: Any, cmd_name: str) -> Any:
        """Return the command of a converter.

        Raises:
            UsageError: There is no such converter; the nearest name is in the message.
        """
        return converter_command(load_converter(cmd_name))


def _can_be_loaded(name: str) -> bool:
    try:
        load_converter(name)
    except UsageError:
        return False
    return True


convert_app = typer.Typer(
    cls=ConverterGroup,
    help="Raw dataset to records. Example: adapt convert drivelm data/raw/drivelm",
    no_args_is_help=True,
    rich_markup_mode=None,
    invoke_without_command=True,
)


@convert_app.callback()
def convert(
    list_: Annotated[
        bool,
        typer.Option("--list", help="Every converter: family, domain, files, licence, source."),
    ] = False,
) -> None:
    """Raw dataset to records. Example: adapt convert drivelm data/raw/drivelm"""
    if list_:
        for name in converter_modules():
            try:
                typer.echo(describe(load_converter(name)))
            except UsageError as error:
                typer.echo(str(error))
        raise typer.Exit


def describe(converter: Converter) -> str:
    """Return what `--list` says of a converter."""
    family = converter.declared("FAMILY", "of no family")
    splits = ", ".join(converter.module.SPLITS)
    lines = [
        f"{converter.name}: {converter.summary}",
        f"  {family}; {converter.role}, {converter.domain}; splits {splits}",
    ]
    for title, constant in (("files", "FILES"), ("licence", "LICENCE"), ("source", "SOURCE")):
        if text := converter.declared(constant):
            lines.append(f"  {title}: {text}")
    return "\n".join(lines)


def converter_command(converter: Converter) -> Any:
    """Build the command of a converter: the common options, then its own."""

    def command(**values: Any) -> None:
        from adapt.convert import ConvertOptions, run_conversion

        own = {name: value for name, value in values.items() if name not in COMMON}
        run_conversion(
            ConvertOptions(
                converter=converter,
                raw=values["raw"],
                out=values["out"],
                splits=tuple(values["split"] or ()),
                options=own,
                workers=values["workers"],
                limit=values["limit"],
                max_skips=values["max_skips"],
                overwrite=values["overwrite"],
            )
        )

    command.__doc__ = (
        f"{converter.summary}\n\nExample: adapt convert {converter.name} data/raw/{converter.name}"
    )
    parameters = [*inspect.signature(_common).parameters.values()]
    parameters += [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.default,
            annotation=Annotated[option.annotation, typer.Option(help=option.help)],
        )
        for option in converter.options
    ]
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters
    ]
    # typer reads a command's options from its signature and annotations.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return _as_command(command, converter.name)


def _as_command(function: Callable[..., None], name: str) -> Any:
    single = typer.Typer(rich_markup_mode=None, add_completion=False)
    single.command(name)(function)
    return typer.main.get_command(single)


def _common(
    raw: Annotated[Path | None, typer.Argument(help="Raw folder (default: data/raw/NAME).")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Dataset folder (default: data/ROLE/NAME).")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Split to convert; repeat for several.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes (default: one a core).")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Raw units to take of each split at most.")
    ] = None,
    max_skips: Annotated[
        int, typer.Option(min=0, help="Raw units that may be lost in each split.")
    ] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what other options or inputs made.")
    ] = False,
) -> None:
    """The options that every converter has; only the signature is used."""


# The annotations above are texts until they are resolved here, once.
_common.__signature__ = inspect.signature(_common, eval_str=True)  # type: ignore[attr-defined]
