"""Memory and time of a training run, estimated before it; no weights are loaded.

Memory of one GPU, in bytes, for N GPUs; w is 2 (bf16) or 4 (fp32), P all parameters, R those
trained:

    weights       w P                            ZeRO-3: / N, plus what is gathered at once
    gradients     w R                            ZeRO-2 and 3: / N
    optimiser     12 R (master copy, 2 averages) ZeRO-1 to 3: / N; on the CPU with offload
    update        4 R, for the update only       ZeRO-1 to 3: / N; on the CPU with offload
    buckets       of ZeRO's exchanges, twice where they overlap with work
    activations   kept through the forward pass, and those of the layer at work
    separation    3 tokens^2: which token may see which, as a mask and as the kernel's copy
    logits        loss_chunk_tokens rows: in w, in float32, and their gradient
    context       1 GiB: CUDA, cuBLAS, NCCL

For a layer and token, 10h + 4i + 2k numbers are kept by Llama and Qwen2 layers (h hidden, i inner,
k key-value width; 12h for Phi-3) and 12h + 2i by a vision layer with drop path: counted from what
autograd saves. Checkpointing keeps h, and the rest for one layer at a time.

Time: 2 operations for each weight and token forward, as many again for the gradient of the
activations, of trained weights, and of recomputation; attention by the length of each record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapt.recipe import Recipe

if TYPE_CHECKING:
    from adapt.models.handle import ModelHandle

CONTEXT_BYTES = 2**30
_QUANTISED_BYTES = 0.52  # NF4 with doubly quantised scales: 4.127 bits.
_OPTIMISER_BYTES = 12
_UPDATE_BYTES = 4
_MASK_BYTES = 3


@dataclass(frozen=True, slots=True)
class Tower:
    """A stack of transformer layers.

    Args:
        layers: How many.
        hidden: Width.
        inner: Width inside the MLP.
        key_value: Width of the keys (and of the values).
        kept: Multiples of `hidden` that a layer keeps for its backward pass.
        gated: Whether the MLP has a gate.
        weights: Weights that each token meets.
    """

    layers: int
    hidden: int
    inner: int
    key_value: int
    kept: int
    gated: bool
    weights: int

    def activations(self, tokens: int, *, checkpointing: bool) -> int:
        """Return the numbers alive at the worst moment of a pass that has a backward."""
        layer = self.kept * self.hidden + (4 if self.gated else 2) * self.inner
        layer += 2 * self.key_value if self.gated else 0
        gradients = 2 * self.hidden + (3 if self.gated else 2) * self.inner
        through = self.hidden if checkpointing else layer
        return tokens * (self.layers * through + layer + gradients)


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model decides memory and time.

    Args:
        total: Parameters.
        quantisable: Parameters that QLoRA holds in 4 bits.
        trained: Parameters trained, by method.
        language: The language model.
        vision: The vision tower; None for a model without one.
        vocabulary: Rows of the head.
        tokens_per_tile: Tokens a tile is in the vision tower.
    """

    total: int
    quantisable: int
    trained: Mapping[str, int]
    language: Tower
    vision: Tower | None
    vocabulary: int
    tokens_per_tile: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one GPU, and what lies in the memory of the machine for it."""

    weights: int
    gradients: int
    optimiser: int
    update: int
    buckets: int
    activations: int
    separation: int
    logits: int
    on_cpu: int

    @property
    def peak(self) -> int:
        """The worse of a backward pass and an update."""
        lasting = self.weights + self.gradients + self.optimiser + CONTEXT_BYTES
        backward = self.buckets + self.activations + self.separation + self.logits
        return lasting + max(backward, self.update)


def read_shape(handle: ModelHandle, recipe: Recipe) -> Shape:
    """Read the shape of a model from its config, its parameters counted without weights.

    Raises:
        RecipeError: The recipe's method or stage is not for this model.
    """
    import torch
    from torch import nn

    from adapt.models.freeze import freeze, lora_targets
    from adapt.models.presets import model_class

    with torch.device("meta"):
        model = model_class(handle.architecture)(handle.config())
    modules = dict(model.named_modules())
    linear = [module for module in modules.values() if isinstance(module, nn.Linear)]
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    if recipe.method in ("full", "freeze-vit"):
        # Refuses what this model cannot do.
        freeze(model, recipe.method, recipe.stage)
    trained = {"full": freeze(model, "full", recipe.stage).trainable}
    if handle.architecture == "internvl":
        trained["freeze-vit"] = freeze(model, "freeze-vit").trainable
    adapters = sum(
        recipe.lora.rank * (modules[name].in_features + modules[name].out_features)
        for name in lora_targets(model, vision=recipe.lora.vision)
    )
    trained |= {"lora": adapters, "qlora": adapters}
    config = handle.config()
    return Shape(
        total=sum(sizes.values()),
        quantisable=sum(module.weight.numel() for module in linear) - model.lm_head.weight.numel(),
        trained=trained,
        language=_language(config.text_config, sizes),
        vision=_vision(config.vision_config, sizes),
        vocabulary=int(config.text_config.vocab_size),
        tokens_per_tile=(handle.tile_px // int(config.vision_config.patch_size[0])) ** 2 + 1,
    )


def _language(text: Any, sizes: Mapping[str, int]) -> Tower:
    # Of Mono-InternVL's two MLPs a token meets one, and both have the same size.
    weights = sum(
        size
        for name, size in sizes.items()
        if "language_model.layers." in name and "visual_mlp" not in name
    )
    head = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    return Tower(
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        inner=int(text.intermediate_size),
        key_value=int(text.num_key_value_heads) * head,
        kept=12 if text.model_type == "phi3" else 10,
        gated=True,
        weights=weights,
    )


def _vision(vision: Any, sizes: Mapping[str, int]) -> Tower | None:
    weights = sum(size for name, size in sizes.items() if "vision_tower" in name)
    if not weights:
        return None
    return Tower(
        layers=int(vision.num_hidden_layers),
        hidden=int(vision.hidden_size),
        inner=int(vision.intermediate_size),
        key_value=int(vision.hidden_size),
        kept=12,
        gated=False,
        weights=weights,
    )


def estimate_memory(
    shape: Shape,
    recipe: Recipe,
    zero: Mapping[str, Any],
    *,
    gpus: int,
    tokens: int,
    tiles: int,
) -> Memory:
    """Estimate the memory of one GPU.

    Args:
        shape: Of the model.
        recipe: Its method, number format, checkpointing and chunks.
        zero: The `zero_optimization` part of the DeepSpeed settings.
        gpus: GPUs that share what ZeRO partitions.
        tokens: Tokens of the largest pack.
        tiles: Tiles of the pack with most tiles.
    """
    wide = 2 if recipe.dtype == "bf16" else 4
    stage = int(zero.get("stage", 0))
    trained = shape.trained[recipe.method]
    offload = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    offload_weights = zero.get("offload_param", {}).get("device", "none") != "none"
    weights = shape.total * wide
    if recipe.method == "qlora":
        weights -= round(shape.quantisable * (wide - _QUANTISED_BYTES))
    on_cpu = 0
    if stage == 3:
        gathered = min(int(zero.get("stage3_max_live_parameters", 1e9)), shape.total) * wide
        share = weights // gpus
        on_cpu += share * offload_weights
        weights = min(weights, gathered + share * (not offload_weights))
    states = trained * _OPTIMISER_BYTES // (gpus if stage else 1)
    update = trained * _UPDATE_BYTES // (gpus if stage else 1)
    if offload:
        on_cpu, states, update = on_cpu + states + update, 0, 0
    return Memory(
        weights=weights,
        gradients=trained * wide // (gpus if stage >= 2 else 1),
        optimiser=states,
        update=update,
        buckets=_buckets(zero, trained) * wide if gpus > 1 or stage == 3 else 0,
        activations=_activations(shape, recipe, tokens, tiles) * wide,
        separation=_MASK_BYTES * tokens * tokens,
        logits=recipe.loss_chunk_tokens * shape.vocabulary * (wide + 4 + 4),
        on_cpu=on_cpu,
    )


def _buckets(zero: Mapping[str, Any], trained: int) -> int:
    """Return the numbers in the buffers of ZeRO's exchanges."""
    reduce = min(int(zero.get("reduce_bucket_size", 5e8)), trained)
    gather = min(int(zero.get("allgather_bucket_size", 5e8)), trained)
    prefetch = int(zero.get("stage3_prefetch_bucket_size", 0))
    stage_3 = int(zero.get("stage", 0)) == 3
    return reduce * (2 if zero.get("overlap_comm") else 1) + (prefetch if stage_3 else gather)


def _activations(shape: Shape, recipe: Recipe, tokens: int, tiles: int) -> int:
    """Return the numbers alive at the worst moment: both parts kept, one layer of one at work."""
    checkpointing = recipe.activation_checkpointing
    language = shape.language.activations(tokens, checkpointing=checkpointing)
    if shape.vision is None:
        return language
    patches = tiles * shape.tokens_per_tile
    if not vision_learns(recipe):
        # No backward pass: two layers' inputs and an MLP at a time.
        return max(language, patches * (2 * shape.vision.hidden + shape.vision.inner))
    vision = shape.vision.activations(patches, checkpointing=checkpointing)
    kept = patches * shape.vision.hidden * shape.vision.layers if checkpointing else vision
    # The vision tower's backward pass comes when the language model's is over.
    return max(language + kept, vision)


def vision_learns(recipe: Recipe) -> bool:
    """Return whether the backward pass goes through the vision tower."""
    if recipe.method in ("lora", "qlora"):
        return recipe.lora.vision
    return recipe.method == "full"


def pack_operations(
    shape: Shape, recipe: Recipe, *, tokens: float, squares: float, supervised: float, tiles: float
) -> float:
    """Return the floating-point operations of training on one pack, recomputation included.

    Args:
        shape: Of the model.
        recipe: Its method and checkpointing.
        tokens: Tokens of the pack.
        squares: Sum over its records of the square of their tokens.
        supervised: Tokens that meet the head.
        tiles: Tiles.
    """
    again = recipe.activation_checkpointing
    adapters = recipe.method in ("lora", "qlora")
    # Forward, gradient of the activations, gradient of the weights.
    language_passes = (2 if adapters else 3) + again
    language = shape.language
    forward = 2 * language.weights * tokens
    # Scores and weighted values, of which the causal half counts.
    forward += 2 * language.layers * language.hidden * squares
    head = 2 * shape.vocabulary * language.hidden * supervised * (2 if adapters else 3)
    operations = forward * language_passes + head
    if shape.vision is not None:
        vision_passes = 1.0
        if vision_learns(recipe):
            vision_passes = language_passes
        patches = tiles * shape.tokens_per_tile
        seen = 2 * shape.vision.weights * patches
        seen += 4 * shape.vision.layers * shape.vision.hidden * patches * shape.tokens_per_tile
        operations += seen * vision_passes
    return float(operations)
