"""What a native checkpoint folder holds beside its weights.

    config.json, generation_config.json                 the model
    tokenizer.json, tokenizer_config.json               its tokenizer
    chat_template.jinja                                 its chat template, in transformers' form
    processor_config.json, preprocessor_config.json,    InternVLProcessor, its pictures
    video_preprocessor_config.json                      and its frames
    adapt.json                                          see `adapt.models.card`
    original/                                           small files of the folder it came from

All stock transformers reads: no code is written.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt.jsonl import write_json
from adapt.models.chat import IMAGE_CONTEXT, ChatTemplate
from adapt.models.pixels import IMAGENET_MEAN, IMAGENET_STD
from adapt.models.presets import model_class
from adapt.models.tokenizers import adds_bos, saving, stop_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ORIGINAL_FILES = "original"
# Kept by an import and restored by an export, byte for byte; weights and code are not among them.
KEPT = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)

_NORMALISATION: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": list(IMAGENET_MEAN),
    "image_std": list(IMAGENET_STD),
    "processor_class": "InternVLProcessor",
    "resample": 3,
    "rescale_factor": 1 / 255,
}


def write_config(folder: Path, config: Any, dtype: Any) -> None:
    """Write config.json of a model.

    Args:
        folder: Where to.
        config: Its transformers config; takes the class name and `dtype`.
        dtype: torch dtype of its weights.
    """
    architecture = "mono" if config.model_type == "mono_internvl" else "internvl"
    config.architectures = [model_class(architecture).__name__]
    config.dtype = dtype
    config.save_pretrained(folder)


def write_generation_config(
    folder: Path,
    config: Any,
    tokenizer: PreTrainedTokenizerFast | None = None,
    template: ChatTemplate | None = None,
) -> None:
    """Write generation_config.json: greedy, ended by the template's stop tokens.

    Without a tokenizer the ids of the config are all that is known.
    """
    from transformers import GenerationConfig

    text = config.text_config
    stop, pad = text.eos_token_id, text.pad_token_id
    if tokenizer is not None and template is not None:
        stop = stop_token_ids(tokenizer, template) or stop
        pad = pad if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    generation = GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=stop, pad_token_id=pad, do_sample=False
    )
    generation.save_pretrained(folder)


def write_processor(
    folder: Path, config: Any, tokenizer: PreTrainedTokenizerFast, template: ChatTemplate
) -> None:
    """Write the tokenizer, the chat template and what AutoProcessor reads."""
    tokenizer.chat_template = chat_template_jinja(template, with_bos=adds_bos(tokenizer))
    with saving(folder):
        tokenizer.save_pretrained(folder)
    side = int(config.vision_config.image_size[0])
    pictures = {**_NORMALISATION, "size": {"height": side, "width": side}}
    tiling = {"crop_to_patches": True, "max_patches": 12, "min_patches": 1}
    write_json(
        folder / "preprocessor_config.json",
        {**pictures, **tiling, "image_processor_type": "GotOcr2ImageProcessor"},
    )
    write_json(
        folder / "video_preprocessor_config.json",
        {**pictures, "video_processor_type": "InternVLVideoProcessor"},
    )
    write_json(
        folder / "processor_config.json",
        {"image_seq_length": config.image_seq_length, "processor_class": "InternVLProcessor"},
    )


def chat_template_jinja(template: ChatTemplate, *, with_bos: bool = False) -> str:
    """Return a chat template in the form transformers takes.

    Args:
        template: The chat template.
        with_bos: Whether the tokenizer begins every text with its BOS token. transformers does not
            let it when it renders a chat, so the chat must spell it.

    A message's content is a text, or a list of parts in order: a picture is `<IMG_CONTEXT>` and a
    newline (the processor makes it `<img>...</img>`), like `<image>` and a newline in a record.
    """
    trim = " | trim" if template.strip_turns else ""
    after = json.dumps(template.end + template.after_end, ensure_ascii=False)
    header, user, assistant, system, picture = (
        json.dumps(text, ensure_ascii=False)
        for text in (
            template.system_header,
            template.user_header,
            template.assistant_header,
            template.system,
            f"{IMAGE_CONTEXT}\n",
        )
    )
    return (
        "{%- macro text(content) -%}"
        f"{{%- if content is string -%}}{{{{ content{trim} }}}}{{%- else -%}}"
        "{%- for part in content -%}"
        f"{{%- if part.type == 'text' -%}}{{{{ part.text{trim} }}}}"
        f"{{%- else -%}}{{{{ {picture} }}}}{{%- endif -%}}"
        "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
        f"{'{{ bos_token }}' if with_bos else ''}{{{{ {header} }}}}"
        "{%- if messages and messages[0].role == 'system' -%}{{ text(messages[0].content) }}"
        f"{{%- else -%}}{{{{ {system} }}}}{{%- endif -%}}{{{{ {after} }}}}"
        "{%- for message in messages if message.role != 'system' -%}"
        f"{{{{ {user} if message.role == 'user' else {assistant} }}}}"
        f"{{{{ text(message.content) }}}}{{{{ {after} }}}}"
        "{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{ {assistant} }}}}{{%- endif -%}}"
    )


def keep_original_files(source: Path, folder: Path) -> None:
    """Copy the small files of an original checkpoint to `original/`, for the way back."""
    kept = folder / ORIGINAL_FILES
    kept.mkdir()
    for path in original_files(source):
        shutil.copyfile(path, kept / path.name)


def original_files(folder: Path) -> list[Path]:
    """Return the files that an original folder keeps through import and export."""
    return [folder / name for name in KEPT if (folder / name).is_file()]


def carry_original_files(source: Path, folder: Path) -> None:
    """Copy `original/` from one native checkpoint to another made from it, if there is one."""
    if (source / ORIGINAL_FILES).is_dir():
        shutil.copytree(source / ORIGINAL_FILES, folder / ORIGINAL_FILES)
