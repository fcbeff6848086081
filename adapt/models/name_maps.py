"""The pairs of tensors of each part: vision tower, projector, three kinds of language model.

    original                                        native (in memory)
    vision_model.*                                  model.vision_tower.*
    mlp1.{0,1,3}                                    model.multi_modal_projector.*
    language_model.model.*                          model.language_model.*
    language_model.{lm_head,output}                 lm_head

Qwen2 and Phi-3 keep their names; InternLM2 becomes a Llama. Phi-3's fused weights stay fused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adapt.models.layouts import EqualRows, GroupedRows, Pair, same

BOTH = ("weight", "bias")
ORIGINAL_LANGUAGE = "language_model.model"
NATIVE_LANGUAGE = "model.language_model"


def vision_pairs(config: Any) -> Iterator[Pair]:
    """Yield the pairs of an InternViT of the native vision `config`."""
    old, new = "vision_model.embeddings", "model.vision_tower.embeddings"
    yield Pair(f"{old}.class_embedding", (f"{new}.cls_token",))
    yield Pair(f"{old}.position_embedding", (f"{new}.position_embeddings",))
    yield from same(f"{old}.patch_embedding", f"{new}.patch_embeddings.projection", BOTH)
    for layer in range(config.num_hidden_layers):
        yield from _vision_layer_pairs(config, layer)


def _vision_layer_pairs(config: Any, layer: int) -> Iterator[Pair]:
    old = f"vision_model.encoder.layers.{layer}"
    new = f"model.vision_tower.encoder.layer.{layer}"
    norm_leaves = BOTH if config.norm_type == "layer_norm" else ("weight",)
    yield Pair(f"{old}.ls1", (f"{new}.lambda_1",))
    yield Pair(f"{old}.ls2", (f"{new}.lambda_2",))
    yield from same(f"{old}.norm1", f"{new}.layernorm_before", norm_leaves)
    yield from same(f"{old}.norm2", f"{new}.layernorm_after", norm_leaves)
    for leaf in BOTH if config.attention_bias else ("weight",):
        parts = tuple(f"{new}.attention.{part}_proj.{leaf}" for part in "qkv")
        yield Pair(f"{old}.attn.qkv.{leaf}", parts, EqualRows(3))
    if config.use_qk_norm:
        yield from same(f"{old}.attn.q_norm", f"{new}.attention.q_norm")
        yield from same(f"{old}.attn.k_norm", f"{new}.attention.k_norm")
    yield from same(f"{old}.attn.proj", f"{new}.attention.projection_layer", BOTH)
    yield from same(f"{old}.mlp.fc1", f"{new}.mlp.fc1", BOTH)
    yield from same(f"{old}.mlp.fc2", f"{new}.mlp.fc2", BOTH)


def projector_pairs(native: str = "model.multi_modal_projector") -> Iterator[Pair]:
    """Yield the pairs of the projector: norm, linear, (GELU), linear."""
    for index, name in (("0", "layer_norm"), ("1", "linear_1"), ("3", "linear_2")):
        yield from same(f"mlp1.{index}", f"{native}.{name}", BOTH)


def qwen2_pairs(config: Any) -> Iterator[Pair]:
    """Yield the pairs of a Qwen2 language model of the native text `config`."""
    yield from _llama_like_pairs(config, _qwen2_layer_leaves)


def phi3_pairs(config: Any) -> Iterator[Pair]:
    """Yield the pairs of a Phi-3 language model of the native text `config`."""
    yield from _llama_like_pairs(config, _phi3_layer_leaves)


def _llama_like_pairs(config: Any, layer_leaves: Any) -> Iterator[Pair]:
    yield from same(f"{ORIGINAL_LANGUAGE}.embed_tokens", f"{NATIVE_LANGUAGE}.embed_tokens")
    for layer in range(config.num_hidden_layers):
        for module, leaves in layer_leaves():
            tail = f"layers.{layer}.{module}"
            yield from same(f"{ORIGINAL_LANGUAGE}.{tail}", f"{NATIVE_LANGUAGE}.{tail}", leaves)
    yield from same(f"{ORIGINAL_LANGUAGE}.norm", f"{NATIVE_LANGUAGE}.norm")
    if not config.tie_word_embeddings:
        yield from same("language_model.lm_head", "lm_head")


def _qwen2_layer_leaves() -> Iterator[tuple[str, tuple[str, ...]]]:
    for part in ("q_proj", "k_proj", "v_proj"):
        yield f"self_attn.{part}", BOTH
    yield "self_attn.o_proj", ("weight",)
    for module in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        yield module, ("weight",)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield norm, ("weight",)


def _phi3_layer_leaves() -> Iterator[tuple[str, tuple[str, ...]]]:
    for module in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"):
        yield module, ("weight",)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield norm, ("weight",)


def internlm2_pairs(config: Any) -> Iterator[Pair]:
    """Yield the pairs of an InternLM2 language model of the native Llama `config`."""
    yield from internlm2_outer_pairs(config)
    for layer in range(config.num_hidden_layers):
        old, new = f"{ORIGINAL_LANGUAGE}.layers.{layer}", f"{NATIVE_LANGUAGE}.layers.{layer}"
        yield from internlm2_attention_pairs(config, old, new)
        yield from internlm2_mlp_pairs(f"{old}.feed_forward", f"{new}.mlp")


def internlm2_outer_pairs(config: Any, native: str = NATIVE_LANGUAGE) -> Iterator[Pair]:
    """Yield the pairs outside the layers: embeddings, last norm, head."""
    yield from same(f"{ORIGINAL_LANGUAGE}.tok_embeddings", f"{native}.embed_tokens")
    yield from same(f"{ORIGINAL_LANGUAGE}.norm", f"{native}.norm")
    if not config.tie_word_embeddings:
        yield from same("language_model.output", "lm_head")


def internlm2_attention_pairs(config: Any, old: str, new: str) -> Iterator[Pair]:
    """Yield the pairs of one layer's attention and its two norms.

    Args:
        config: Native text config; its heads say how wqkv is grouped.
        old: Original name of the layer.
        new: Native name of the layer.
    """
    leaves = BOTH if config.attention_bias else ("weight",)
    head_dim = config.hidden_size // config.num_attention_heads
    queries = config.num_attention_heads // config.num_key_value_heads
    cut = GroupedRows(config.num_key_value_heads, queries, head_dim)
    for leaf in leaves:
        parts = tuple(f"{new}.self_attn.{part}_proj.{leaf}" for part in "qkv")
        yield Pair(f"{old}.attention.wqkv.{leaf}", parts, cut)
    yield from same(f"{old}.attention.wo", f"{new}.self_attn.o_proj", leaves)
    yield from same(f"{old}.attention_norm", f"{new}.input_layernorm")
    yield from same(f"{old}.ffn_norm", f"{new}.post_attention_layernorm")


def internlm2_mlp_pairs(old: str, new: str) -> Iterator[Pair]:
    """Yield the pairs of one gated MLP: w1 gate, w3 up, w2 down."""
    for original, native in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
        yield from same(f"{old}.{original}", f"{new}.{native}")
