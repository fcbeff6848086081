"""`adapt models`: checkpoints between layouts, presets, adapters."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from adapt.errors import MissingExtra

OutFolder = Annotated[Path, typer.Option(help="Folder to write.")]

models_app = typer.Typer(
    help="Checkpoints: presets, both layouts, adapters. Example: adapt models list",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@models_app.callback()
def models() -> None:
    """Checkpoints: presets, original and native layouts, adapters. Example: adapt models list"""


@models_app.command("list")
def list_() -> None:
    """Every preset: name, parameters, chat template, where it comes from.

    Example: adapt models list
    """
    from adapt.models.show import list_models

    for line in list_models():
        typer.echo(line)


@models_app.command()
def show(
    name: Annotated[str, typer.Argument(help="Preset, checkpoint folder, run folder or hub id.")],
    render: Annotated[
        Path | None, typer.Option(help="Records file: print its first records as tokens.")
    ] = None,
    max_tiles: Annotated[
        int, typer.Option(min=1, help="Most tiles a picture, with --render.")
    ] = 12,
    limit: Annotated[int, typer.Option(min=1, help="How many records, with --render.")] = 3,
) -> None:
    """What a model is; with --render, the exact tokens of records, the learned ones marked.

    Example: adapt models show tiny --render data/domain/drivelm/train.jsonl
    """
    from adapt.models.show import render_records, show_model

    if render is None:
        for line in show_model(name):
            typer.echo(line)
        return
    _require_train("show --render")
    from adapt.models.handle import open_model

    for line in render_records(open_model(name), render, max_tiles=max_tiles, limit=limit):
        typer.echo(line)


@models_app.command()
def create(
    kind: Annotated[str, typer.Argument(help="mini-internvl or mono-internvl.")],
    llm: Annotated[Path, typer.Option(help="Folder of the language model.")],
    out: OutFolder,
    vision: Annotated[
        Path | None, typer.Option(help="Folder of the vision tower (mini-internvl).")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Chat template (default: by language model).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the fresh weights.")] = 0,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare logits with the parts.")
    ] = True,
) -> None:
    """Compose a model: language model, vision tower, fresh projector, special tokens.

    Example: adapt models create mono-internvl --llm internlm2-chat-1_8b --out models/mono
    """
    _require_train("create")
    from adapt.models.create import CreateOptions, run_create

    report = run_create(
        CreateOptions(
            kind=kind,
            language=llm,
            out=out,
            vision=vision,
            template=template,
            seed=seed,
            verify=verify,
        )
    )
    typer.echo(str(report))


@models_app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="Folder, preset or hub id, original layout.")],
    out: OutFolder,
    image_token_id: Annotated[
        int | None, typer.Option(help="Id of <IMG_CONTEXT>, for a folder without a tokenizer.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare logits of both sides.")
    ] = True,
) -> None:
    """Bring an OpenGVLab checkpoint into the layout that stock transformers loads.

    Example: adapt models import OpenGVLab/InternVL2-2B --out models/mini-internvl2-2b
    """
    _require_train("import")
    from adapt.models.hub import checkpoint_folder
    from adapt.models.importing import import_checkpoint
    from adapt.models.presets import preset_of

    preset = None if Path(source).is_dir() else preset_of(source)
    report = import_checkpoint(
        checkpoint_folder(source),
        out,
        verify=verify,
        image_token_id=image_token_id,
        preset=preset.name if preset else None,
    )
    typer.echo(str(report))


@models_app.command()
def export(
    source: Annotated[str, typer.Argument(help="Native checkpoint or run folder, or preset.")],
    out: OutFolder,
    layout: Annotated[str, typer.Option(help="original or native.")] = "original",
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare logits of both sides.")
    ] = True,
) -> None:
    """Write a checkpoint back in OpenGVLab's layout, for LMDeploy, vLLM and VLMEvalKit.

    Example: adapt models export runs/drivelm --layout original --out served
    """
    _require_train("export")
    from adapt.models.exporting import export_checkpoint
    from adapt.models.hub import checkpoint_folder

    folder = checkpoint_folder(source)
    typer.echo(str(export_checkpoint(folder, out, layout=layout, verify=verify)))


@models_app.command()
def verify(
    a: Annotated[str, typer.Argument(help="A checkpoint, any layout.")],
    b: Annotated[str, typer.Argument(help="Another.")],
    image_token_id: Annotated[
        int | None, typer.Option(help="Id of <IMG_CONTEXT>, where neither folder says.")
    ] = None,
) -> None:
    """Run two checkpoints on the same inputs and compare their logits.

    Example: adapt models verify OpenGVLab/InternVL2-2B models/mini-internvl2-2b
    """
    _require_train("verify")
    from adapt.models.hub import checkpoint_folder
    from adapt.models.verify import verify_checkpoints

    first, second = checkpoint_folder(a), checkpoint_folder(b)
    typer.echo(str(verify_checkpoints(first, second, image_token_id=image_token_id)))


@models_app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="LoRA adapter, or a run folder with one.")],
    base: Annotated[str, typer.Argument(help="Native checkpoint it was trained on, or preset.")],
    out: OutFolder,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare logits through peft.")
    ] = True,
) -> None:
    """Merge a LoRA adapter into its base: a whole native checkpoint.

    Example: adapt models merge runs/medical/adapter models/mini-internvl2-2b --out merged
    """
    _require_train("merge")
    from adapt.models.hub import checkpoint_folder
    from adapt.models.merge import merge_adapter

    typer.echo(str(merge_adapter(adapter, checkpoint_folder(base), out, verify=verify)))


def _require_train(command: str) -> None:
    """Stop with the install line when the [train] extra is missing, without importing it."""
    if find_spec("torch") is None:
        raise MissingExtra(f"models {command}", "train")
