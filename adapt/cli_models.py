"""`adapt models`: checkpoints between layouts, presets, adapters."""

import typer

models_app = typer.Typer(
    help="Checkpoints: list, show, import, export, create, merge, verify.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@models_app.callback()
def models() -> None:
    """Checkpoints: presets, original and native layouts, adapters."""
