"""The forward pass of the original models on the original tensor names, in plain torch.

It is evidence for a conversion, so it shares nothing with it: no transformers class, no name map.
Written from the architecture alone, slow and simple:

    pixels -> InternViT (or, in Mono-InternVL, patches alone) -> pixel shuffle -> mlp1 -+
    token ids -> embeddings, image positions replaced by ------------------------------<-+
    -> Qwen2 | InternLM2 | InternLM2 with a visual expert | Phi-3 -> logits

Every tensor is read when it is used, computed with in float32, and let go: the memory is that of
the largest matrix. One row at a time, no cache, no mask but the causal one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from adapt.models.shards import Checkpoint

# Rows of the head (one per word of the vocabulary) multiplied at a time.
_HEAD_ROWS = 8192


class OriginalForward:
    """Runs an original checkpoint.

    Args:
        checkpoint: Its tensors.
        config: Its config.json, every key there (`config_maps.with_defaults`).
        image_token_id: Of `<IMG_CONTEXT>`.
    """

    def __init__(self, checkpoint: Checkpoint, config: dict[str, Any], image_token_id: int) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._image_token_id = image_token_id

    @torch.no_grad()
    def logits(
        self,
        input_ids: Tensor,
        positions: Tensor,
        pixel_values: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Return logits of one row.

        Args:
            input_ids: [tokens] int64.
            positions: [tokens] int64; the largest decides the rope of dynamic and long ropes.
            pixel_values: [tiles, 3, side, side] float32, normalised; None: text alone.
            keep: Indices of the tokens whose logits are wanted, int64; None: all.

        Returns:
            [tokens kept, vocabulary] float32.
        """
        language = _Language(self._checkpoint, self._config["llm_config"])
        hidden = language.embed(input_ids)
        is_image = input_ids == self._image_token_id
        if pixel_values is None:
            is_image = torch.zeros_like(is_image)
        else:
            hidden[is_image] = self.features(pixel_values).flatten(0, 1)
        hidden = language.run(hidden, positions, is_image)
        return language.logits(hidden if keep is None else hidden[keep])

    @torch.no_grad()
    def features(self, pixel_values: Tensor) -> Tensor:
        """Return the projected features of tiles: [tiles, tokens, language hidden]."""
        patches = _Vision(self._checkpoint, self._config).patches(pixel_values)
        shuffled = pixel_shuffle(patches, self._config["downsample_ratio"])
        tensors = _Tensors(self._checkpoint, "mlp1.")
        wide = tensors.layer_norm("0", shuffled, 1e-5)
        return tensors.linear("3", functional.gelu(tensors.linear("1", wide)))


def pixel_shuffle(patches: Tensor, ratio: float) -> Tensor:
    """Merge blocks of patches into channels (version 2): [tiles, n, c] -> [tiles, n r², c / r²]."""
    tiles, count, channels = patches.shape
    side, block = math.isqrt(count), round(1 / ratio)
    grid = patches.reshape(tiles, side // block, block, side // block, block, channels)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(tiles, -1, channels * block * block)


class _Tensors:
    """The tensors under a prefix, as the operations they are for; all in float32."""

    def __init__(self, checkpoint: Checkpoint, prefix: str) -> None:
        self._checkpoint, self._prefix = checkpoint, prefix

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._checkpoint.specs

    def get(self, name: str) -> Tensor:
        return self._checkpoint.read(self._prefix + name).float()

    def optional(self, name: str) -> Tensor | None:
        return self.get(name) if name in self else None

    def linear(self, name: str, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, self.get(f"{name}.weight"), self.optional(f"{name}.bias"))

    def layer_norm(self, name: str, inputs: Tensor, epsilon: float) -> Tensor:
        weight, bias = self.get(f"{name}.weight"), self.get(f"{name}.bias")
        return functional.layer_norm(inputs, weight.shape, weight, bias, epsilon)

    def rms_norm(self, name: str, inputs: Tensor, epsilon: float) -> Tensor:
        mean_square = inputs.square().mean(-1, keepdim=True)
        return inputs * torch.rsqrt(mean_square + epsilon) * self.get(f"{name}.weight")


class _Vision:
    """InternViT, or the patch embedding of Mono-InternVL."""

    def __init__(self, checkpoint: Checkpoint, config: dict[str, Any]) -> None:
        self._checkpoint = checkpoint
        self._config = config["vision_config"]
        layers, chosen = self._config["num_hidden_layers"], config["select_layer"]
        if config["llm_config"]["architectures"][0] == "InternLM2VEForCausalLM":
            # Mono-InternVL has the embeddings alone, whatever layers its config gives.
            self._layers = 0
        else:
            self._layers = layers if chosen == -1 else chosen % (layers + 1)

    def patches(self, pixel_values: Tensor) -> Tensor:
        """Return [tiles, patches, vision hidden], the class token gone."""
        tensors = _Tensors(self._checkpoint, "vision_model.embeddings.")
        weight = tensors.get("patch_embedding.weight")
        bias = tensors.get("patch_embedding.bias")
        patches = functional.conv2d(pixel_values, weight, bias, stride=weight.shape[-1])
        patches = patches.flatten(2).transpose(1, 2)
        first = tensors.get("class_embedding").expand(len(patches), -1, -1)
        hidden = torch.cat((first, patches), 1) + tensors.get("position_embedding")
        for layer in range(self._layers):
            hidden = self._layer(layer, hidden)
        return hidden[:, 1:]

    def _layer(self, index: int, hidden: Tensor) -> Tensor:
        tensors = _Tensors(self._checkpoint, f"vision_model.encoder.layers.{index}.")
        attended = self._attention(tensors, self._norm(tensors, "norm1", hidden))
        hidden = hidden + attended * tensors.get("ls1")
        wide = functional.gelu(tensors.linear("mlp.fc1", self._norm(tensors, "norm2", hidden)))
        return hidden + tensors.linear("mlp.fc2", wide) * tensors.get("ls2")

    def _attention(self, tensors: _Tensors, inputs: Tensor) -> Tensor:
        tiles, count, width = inputs.shape
        heads = self._config["num_attention_heads"]
        queries, keys, values = tensors.linear("attn.qkv", inputs).split(width, dim=-1)
        if self._config["qk_normalization"]:
            epsilon = self._config["layer_norm_eps"]
            queries = tensors.rms_norm("attn.q_norm", queries, epsilon)
            keys = tensors.rms_norm("attn.k_norm", keys, epsilon)
        queries, keys, values = (
            part.view(tiles, count, heads, -1).transpose(1, 2) for part in (queries, keys, values)
        )
        scores = queries @ keys.transpose(2, 3) / math.sqrt(width // heads)
        mixed = (scores.softmax(-1) @ values).transpose(1, 2).reshape(tiles, count, width)
        return tensors.linear("attn.proj", mixed)

    def _norm(self, tensors: _Tensors, name: str, inputs: Tensor) -> Tensor:
        epsilon = self._config["layer_norm_eps"]
        if self._config["norm_type"] == "rms_norm":
            return tensors.rms_norm(name, inputs, epsilon)
        return tensors.layer_norm(name, inputs, epsilon)


class _Language:
    """The decoder: Qwen2, InternLM2 (with or without visual experts), or Phi-3."""

    def __init__(self, checkpoint: Checkpoint, config: dict[str, Any]) -> None:
        self._checkpoint, self._config = checkpoint, config
        self._kind = config["architectures"][0]
        self._is_internlm2 = self._kind.startswith("InternLM2")
        self._heads = config["num_attention_heads"]
        self._kv_heads = config["num_key_value_heads"]
        self._head_dim = config["hidden_size"] // self._heads
        self._model = _Tensors(checkpoint, "language_model.model.")
        table = "tok_embeddings" if self._is_internlm2 else "embed_tokens"
        self._embedding = f"language_model.model.{table}.weight"

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings of token ids; only their rows are read."""
        return self._checkpoint.read(self._embedding)[input_ids].float()

    def run(self, hidden: Tensor, positions: Tensor, is_image: Tensor) -> Tensor:
        """Return the hidden states after the last norm: [tokens, hidden]."""
        cosine, sine = self._rope(positions)
        for index in range(self._config["num_hidden_layers"]):
            tensors = _Tensors(self._checkpoint, f"language_model.model.layers.{index}.")
            first, second = (
                ("attention_norm", "ffn_norm")
                if self._is_internlm2
                else ("input_layernorm", "post_attention_layernorm")
            )
            attended = self._attention(tensors, self._norm(tensors, first, hidden), cosine, sine)
            hidden = hidden + attended
            hidden = hidden + self._mlp(tensors, self._norm(tensors, second, hidden), is_image)
        return self._norm(self._model, "norm", hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return [tokens, vocabulary]; the head is read a block of rows at a time."""
        name = "output" if self._is_internlm2 else "lm_head"
        full = f"language_model.{name}.weight"
        if full not in self._checkpoint.specs:
            full = self._embedding
        blocks = self._checkpoint.row_blocks(full, _HEAD_ROWS)
        return torch.cat([hidden @ rows.float().T for rows in blocks], -1)

    def _norm(self, tensors: _Tensors, name: str, inputs: Tensor) -> Tensor:
        return tensors.rms_norm(name, inputs, self._config["rms_norm_eps"])

    def _attention(self, tensors: _Tensors, inputs: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        queries, keys, values = self._project(tensors, inputs)
        queries, keys = _rotate(queries, cosine, sine), _rotate(keys, cosine, sine)
        group = self._heads // self._kv_heads
        keys, values = (part.repeat_interleave(group, dim=1) for part in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", queries, keys) / math.sqrt(self._head_dim)
        count = len(inputs)
        future = torch.ones(count, count, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        mixed = torch.einsum("hqk,khd->qhd", weights, values).reshape(count, -1)
        return tensors.linear("attention.wo" if self._is_internlm2 else "self_attn.o_proj", mixed)

    def _project(self, tensors: _Tensors, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [tokens, heads, dim], keys and values [tokens, kv heads, dim]."""
        count, dim, kv_heads = len(inputs), self._head_dim, self._kv_heads
        if self._is_internlm2:
            fused = tensors.linear("attention.wqkv", inputs).view(count, kv_heads, -1, dim)
            queries = fused[:, :, :-2].reshape(count, self._heads, dim)
            return queries, fused[:, :, -2], fused[:, :, -1]
        if self._kind == "Phi3ForCausalLM":
            fused = tensors.linear("self_attn.qkv_proj", inputs).view(count, -1, dim)
            sizes = [self._heads, kv_heads, kv_heads]
            queries, keys, values = fused.split(sizes, dim=1)
            return queries, keys, values
        queries, keys, values = (
            tensors.linear(f"self_attn.{part}_proj", inputs).view(count, -1, dim) for part in "qkv"
        )
        return queries, keys, values

    def _mlp(self, tensors: _Tensors, inputs: Tensor, is_image: Tensor) -> Tensor:
        if self._kind == "InternLM2VEForCausalLM":
            outputs = torch.empty_like(inputs)
            outputs[~is_image] = _internlm2_mlp(tensors, "feed_forward", inputs[~is_image])
            outputs[is_image] = _internlm2_mlp(tensors, "feed_forward_ve", inputs[is_image])
            return outputs
        if self._is_internlm2:
            return _internlm2_mlp(tensors, "feed_forward", inputs)
        if self._kind == "Phi3ForCausalLM":
            gate, up = tensors.linear("mlp.gate_up_proj", inputs).chunk(2, dim=-1)
        else:
            gate, up = (tensors.linear(f"mlp.{part}_proj", inputs) for part in ("gate", "up"))
        return tensors.linear("mlp.down_proj", functional.silu(gate) * up)

    def _rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine: [tokens, 1, head dim]."""
        inverse, scale = inverse_frequencies(
            self._config, self._head_dim, length=int(positions.max()) + 1
        )
        angles = torch.outer(positions.float(), inverse)
        angles = torch.cat((angles, angles), -1)[:, None]
        return angles.cos() * scale, angles.sin() * scale


def _internlm2_mlp(tensors: _Tensors, name: str, inputs: Tensor) -> Tensor:
    gate, up = (tensors.linear(f"{name}.{part}", inputs) for part in ("w1", "w3"))
    return tensors.linear(f"{name}.w2", functional.silu(gate) * up)


def _rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    left, right = states.chunk(2, dim=-1)
    return states * cosine + torch.cat((-right, left), -1) * sine


def inverse_frequencies(
    config: dict[str, Any], head_dim: int, *, length: int
) -> tuple[Tensor, float]:
    """Return the rope's frequencies and the factor on its cosine and sine.

    Args:
        config: Original `llm_config`.
        head_dim: Width of a head.
        length: Largest position + 1: dynamic and long ropes depend on it.
    """
    theta = float(config["rope_theta"])
    # In float32, as every implementation has it: at position 8000 the rounding shows.
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    scaling = config["rope_scaling"]
    if scaling is None:
        return 1 / theta**exponents, 1.0
    kind = scaling.get("type", scaling.get("rope_type"))
    longest = config["max_position_embeddings"]
    if kind == "linear":
        return 1 / theta**exponents / scaling["factor"], 1.0
    if kind == "dynamic":
        stretch = scaling["factor"] * max(length, longest) / longest - (scaling["factor"] - 1)
        return 1 / (theta * stretch ** (head_dim / (head_dim - 2))) ** exponents, 1.0
    switch = config["original_max_position_embeddings"]
    factors = torch.tensor(scaling["long_factor" if length > switch else "short_factor"])
    ratio = longest / switch
    scale = math.sqrt(1 + math.log(ratio) / math.log(switch)) if ratio > 1 else 1.0
    return 1 / (factors * theta**exponents), scale
