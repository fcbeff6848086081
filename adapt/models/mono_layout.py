"""Mono-InternVL between OpenGVLab's layout and `adapt.models.mono`.

    original                                            native
    vision_model.embeddings.*                           model.vision_embeddings.*
    mlp1.{0,1,3}                                        model.multi_modal_projector.*
    language_model.model.layers.N.feed_forward          model.language_model.layers.N.mlp
    language_model.model.layers.N.feed_forward_ve       model.language_model.layers.N.visual_mlp
    the rest of language_model (InternLM2)              model.language_model (Llama), lm_head

The original vision_config describes a whole vision tower of which only the embeddings exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adapt.models import config_maps
from adapt.models.export_configs import original_config
from adapt.models.layouts import Layout, Pair, same
from adapt.models.name_maps import (
    BOTH,
    NATIVE_LANGUAGE,
    ORIGINAL_LANGUAGE,
    internlm2_attention_pairs,
    internlm2_mlp_pairs,
    internlm2_outer_pairs,
    projector_pairs,
)

ARCHITECTURE = "InternLM2VEForCausalLM"


def mono_pairs(config: Any) -> list[Pair]:
    """Return every pair of a Mono-InternVL of the native `config`."""
    return [
        *_embedding_pairs(),
        *projector_pairs(),
        *internlm2_outer_pairs(config.text_config),
        *_layer_pairs(config.text_config),
    ]


def _embedding_pairs() -> Iterator[Pair]:
    old, new = "vision_model.embeddings", "model.vision_embeddings"
    yield Pair(f"{old}.class_embedding", (f"{new}.cls_token",))
    yield Pair(f"{old}.position_embedding", (f"{new}.position_embeddings",))
    yield from same(f"{old}.patch_embedding", f"{new}.patch_embeddings.projection", BOTH)


def _layer_pairs(text: Any) -> Iterator[Pair]:
    for layer in range(text.num_hidden_layers):
        old, new = f"{ORIGINAL_LANGUAGE}.layers.{layer}", f"{NATIVE_LANGUAGE}.layers.{layer}"
        yield from internlm2_attention_pairs(text, old, new)
        yield from internlm2_mlp_pairs(f"{old}.feed_forward", f"{new}.mlp")
        yield from internlm2_mlp_pairs(f"{old}.feed_forward_ve", f"{new}.visual_mlp")


def _import_config(original: dict[str, Any], image_token_id: int) -> Any:
    from adapt.models.mono import MonoInternVLConfig

    return config_maps.checked_model_config(
        MonoInternVLConfig,
        text_config=config_maps.internlm2_text(original),
        vision_config=config_maps.vision_fields(original),
        **config_maps.outer_config(original, image_token_id),
    )


def _build(config: Any) -> Any:
    from adapt.models.mono import MonoInternVLForConditionalGeneration

    return MonoInternVLForConditionalGeneration(config)


MONO_LAYOUT = Layout(
    name="mono",
    architecture=ARCHITECTURE,
    pairs=mono_pairs,
    import_config=_import_config,
    export_config=lambda config: original_config(config, ARCHITECTURE),
    build=_build,
)
