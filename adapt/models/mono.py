"""Mono-InternVL (arXiv 2410.08202): one language model that sees, with no vision tower.

    pixels [tiles, 3, 448, 448] -> patches of stride 14 + positions -> pixel shuffle -> MLP -+
    text tokens ----------------------------> embeddings -> image positions replaced by --<-+
    each layer:  h + attention(norm(h)), then h + expert(norm(h)),
                 expert = visual MLP at image positions, text MLP everywhere else

The class has the shape of transformers' `InternVLForConditionalGeneration`: the same call, a
`.model` that gives `last_hidden_state`, an `.lm_head`. Attention, norms, rope (dynamic too),
packing by `position_ids`, caches and attention back ends are transformers' own Llama code.

Routing is static. The positions of `<IMG_CONTEXT>` are found once per call; every layer then
gathers its visual and its text tokens, and each expert sees only its own. A call without
pictures in eval mode (every decode step) uses the text experts alone.

Parameters without work: in training mode, and always under ZeRO-3, the patch embedding, the
projector and both experts run even when a row gives them nothing: on zero tokens. All ranks then
gather the same parameters in the same order, and the gradients are exact zeros, not missing.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    GenerationMixin,
    LlamaConfig,
    LlamaModel,
    LlamaPreTrainedModel,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
from transformers.models.internvl.modeling_internvl import (
    InternVLCausalLMOutputWithPast,
    InternVLModelOutputWithPast,
    InternVLMultiModalProjector,
    InternVLVisionEmbeddings,
)
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

MODEL_TYPE = "mono_internvl"


@strict
class MonoInternVLConfig(PreTrainedConfig):
    """What `MonoInternVLForConditionalGeneration` is made of.

    Attributes:
        vision_config: Size of the patch embedding; its layer fields are without meaning here.
        text_config: The language model; both experts of a layer have its `intermediate_size`.
        image_token_id: Id of `<IMG_CONTEXT>`; from the tokenizer, never assumed.
        image_seq_length: Tokens of one tile, after the pixel shuffle.
        downsample_ratio: 0.5 merges 2x2 patches into a token.
        projector_hidden_act: Activation of the MLP behind the pixel shuffle.
    """

    model_type = MODEL_TYPE
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "vision_config": InternVLVisionConfig,
    }

    vision_config: Any = None
    text_config: Any = None
    image_token_id: int = 92546
    image_seq_length: int = 256
    downsample_ratio: float = 0.5
    projector_hidden_act: str = "gelu"
    tie_word_embeddings: bool = False

    def validate_architecture(self) -> None:
        """Refuse sizes that contradict each other; called by the constructor.

        Raises:
            ValueError: Tiles and patches do not give `image_seq_length` tokens.
        """
        vision = self.vision_config
        block = round(1 / self.downsample_ratio)
        rows, columns = (
            size // patch for size, patch in zip(vision.image_size, vision.patch_size, strict=True)
        )
        if rows != columns or rows % block or (rows // block) ** 2 != self.image_seq_length:
            raise ValueError(
                f"image_seq_length is {self.image_seq_length}, but {rows}x{columns} patches in "
                f"blocks of {block}x{block} give {(rows // block) * (columns // block)} tokens"
            )


class Routing(NamedTuple):
    """Which expert sees which token; positions are into the flattened [batch * tokens] row.

    Attributes:
        text: Positions of text tokens, int64 [text].
        visual: Positions of image tokens, int64 [visual].
        restore: Where each position lies in (text, visual) put end to end, int64 [text + visual].
    """

    text: Tensor
    visual: Tensor
    restore: Tensor


def route(is_visual: Tensor) -> Routing:
    """Return the routing of a batch from its mask of image tokens, bool [batch, tokens]."""
    flat = is_visual.reshape(-1)
    text, visual = (~flat).nonzero().squeeze(1), flat.nonzero().squeeze(1)
    restore = torch.empty_like(flat, dtype=torch.long)
    restore[torch.cat((text, visual))] = torch.arange(flat.numel(), device=flat.device)
    return Routing(text, visual, restore)


class MonoDecoderLayer(LlamaDecoderLayer):
    """A Llama layer with a second MLP, `visual_mlp`, for image tokens; `mlp` is the text expert."""

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.visual_mlp = LlamaMLP(config)

    def forward(
        self, hidden_states: Tensor, routing: Routing | None = None, **kwargs: Any
    ) -> Tensor:
        """Run attention, then the experts; without a routing, the text expert alone.

        Args:
            hidden_states: [batch, tokens, hidden].
            routing: Of this batch.
            **kwargs: What LlamaAttention takes: mask, positions, cache.
        """
        residual = hidden_states
        hidden_states, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states), **kwargs
        )
        hidden_states = residual + hidden_states
        return hidden_states + self._experts(self.post_attention_layernorm(hidden_states), routing)

    def _experts(self, hidden_states: Tensor, routing: Routing | None) -> Tensor:
        if routing is None:
            return self.mlp(hidden_states)
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        # Both run even on zero tokens; see "Parameters without work" above.
        text = self.mlp(flat.index_select(0, routing.text))
        visual = self.visual_mlp(flat.index_select(0, routing.visual))
        merged = torch.cat((text, visual)).index_select(0, routing.restore)
        return merged.view_as(hidden_states)


class MonoTextModel(LlamaModel):
    """Llama's model over `MonoDecoderLayer`s; `routing` reaches them as a keyword."""

    _no_split_modules = ("MonoDecoderLayer",)
    _can_record_outputs: ClassVar[dict[str, Any]] = {
        "hidden_states": MonoDecoderLayer,
        "attentions": LlamaAttention,
    }

    def __init__(self, config: LlamaConfig) -> None:
        # LlamaModel's own constructor is passed over: it would build layers to throw away.
        LlamaPreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            MonoDecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()


class MonoInternVLPreTrainedModel(PreTrainedModel):
    """What the two model classes share: features, and how fresh weights are drawn."""

    config: MonoInternVLConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ("MonoDecoderLayer",)
    _skip_keys_device_placement = ("past_key_values",)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, InternVLVisionEmbeddings):
            std = self.config.vision_config.initializer_range
            init.zeros_(module.cls_token)
            init.normal_(module.position_embeddings, std=std)

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """Switch the attention of the language model; the patch embedding has none."""
        if isinstance(attn_implementation, str):
            attn_implementation = {"": attn_implementation, "text_config": attn_implementation}
        super().set_attn_implementation(attn_implementation, *args, **kwargs)


class MonoInternVLModel(MonoInternVLPreTrainedModel):
    """Patch embedding, projector and language model; gives hidden states."""

    def __init__(self, config: MonoInternVLConfig) -> None:
        super().__init__(config)
        # The class token and its position take no part; they are kept for the way back to the
        # original layout, which has them.
        self.vision_embeddings = InternVLVisionEmbeddings(config.vision_config)
        self.multi_modal_projector = InternVLMultiModalProjector(config)
        self.language_model = MonoTextModel(config.text_config)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Embed tiles.

        Args:
            pixel_values: [tiles, 3, height, width], normalised.

        Returns:
            `last_hidden_state`: patches [tiles, patches, vision hidden]; `pooler_output`: tokens
            [tiles, image_seq_length, text hidden].
        """
        patches = self.vision_embeddings(pixel_values)[:, 1:]
        tokens = self.multi_modal_projector(self._pixel_shuffle(patches))
        return BaseModelOutputWithPooling(last_hidden_state=patches, pooler_output=tokens)

    def _pixel_shuffle(self, patches: Tensor) -> Tensor:
        """Merge square blocks: [tiles, patches, C] -> [tiles, patches / k², C * k²], row by row."""
        tiles, count, channels = patches.shape
        block = round(1 / self.config.downsample_ratio)
        side = round(count**0.5) // block
        blocks = patches.reshape(tiles, side, block, side, block, channels)
        return blocks.transpose(2, 3).reshape(tiles, side**2, block**2 * channels)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> InternVLModelOutputWithPast:
        """Run the model up to the last norm.

        Args:
            input_ids: [batch, tokens], with `image_seq_length` image tokens a tile.
            pixel_values: [tiles, 3, height, width], normalised; tiles in reading order.
            attention_mask: [batch, tokens]; None when records are packed.
            position_ids: [batch, tokens]; they restart at each packed record.
            past_key_values: Cache.
            inputs_embeds: In place of `input_ids`, for text alone.
            **kwargs: What LlamaModel takes.

        Raises:
            ValueError: Pictures and image tokens do not match.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.language_model.embed_tokens(input_ids)
        features, routing = None, None
        if pixel_values is not None or self._runs_every_part():
            features = self._features(pixel_values, inputs_embeds.dtype)
            routing = self._route(input_ids, inputs_embeds, features, pixel_values)
            flat = inputs_embeds.reshape(-1, inputs_embeds.shape[-1])
            merged = flat.index_copy(0, routing.visual, features.flatten(0, 1))
            inputs_embeds = merged.view_as(inputs_embeds)
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            routing=routing,
            **kwargs,
        )
        return InternVLModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=None if pixel_values is None else features,
        )

    def _runs_every_part(self) -> bool:
        """Whether parts without tokens must run all the same: in training, and under ZeRO-3."""
        return self.training or hasattr(self.vision_embeddings.cls_token, "ds_id")

    def _features(self, pixel_values: Tensor | None, dtype: torch.dtype) -> Tensor:
        if pixel_values is None:
            vision = self.config.vision_config
            shape = (0, vision.num_channels, *vision.image_size)
            pixel_values = torch.zeros(shape, device=self.device, dtype=dtype)
        return self.get_image_features(pixel_values).pooler_output.to(dtype)

    def _route(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor,
        features: Tensor,
        pixel_values: Tensor | None,
    ) -> Routing:
        if pixel_values is None:
            # The model may itself have written an image token: without a picture it is text.
            return route(torch.zeros(inputs_embeds.shape[:2], device=inputs_embeds.device) > 0)
        if input_ids is None:
            raise ValueError("pixel_values need input_ids: image tokens are found by their id")
        routing = route(input_ids == self.config.image_token_id)
        found, expected = routing.visual.numel(), features.shape[0] * features.shape[1]
        if found != expected:
            raise ValueError(
                f"image features and image tokens do not match: {pixel_values.shape[0]} tiles of "
                f"{features.shape[1]} tokens need {expected} image tokens, input_ids have {found}"
            )
        return routing


class MonoInternVLForConditionalGeneration(MonoInternVLPreTrainedModel, GenerationMixin):
    """Mono-InternVL with its head: logits, loss, generation."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "lm_head.weight": "model.language_model.embed_tokens.weight"
    }

    def __init__(self, config: MonoInternVLConfig) -> None:
        super().__init__(config)
        self.model = MonoInternVLModel(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Embed tiles; see MonoInternVLModel."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> InternVLCausalLMOutputWithPast:
        """Return logits and, given labels, the mean loss of the supervised tokens.

        Generation reads this signature, so it names what MonoInternVLModel.forward takes.

        Args:
            input_ids: [batch, tokens].
            pixel_values: [tiles, 3, height, width], normalised.
            attention_mask: [batch, tokens]; None when records are packed.
            position_ids: [batch, tokens].
            past_key_values: Cache.
            inputs_embeds: In place of `input_ids`, for text alone.
            labels: [batch, tokens], not shifted; -100 where unsupervised.
            logits_to_keep: Only the last so many positions (0: all), or these positions.
            **kwargs: What LlamaModel takes.
        """
        num_items = kwargs.pop("num_items_in_batch", None)
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.text_config.vocab_size,
                num_items_in_batch=num_items,
            )
        return InternVLCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the inputs of one step; pictures go in with the prompt and not again."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs["pixel_values"] = pixel_values
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Repeat rows for beams or several answers, with all tiles of a row kept together."""
        pixel_values = kwargs.pop("pixel_values", None)
        if pixel_values is not None and expand_size > 1 and input_ids is not None:
            image_tokens = (input_ids == self.config.image_token_id).sum(1)
            tiles = (image_tokens // self.config.image_seq_length).tolist()
            rows = [row.repeat(expand_size, 1, 1, 1) for row in pixel_values.split(tiles)]
            pixel_values = torch.cat(rows)
        ids, kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **kwargs
        )
        return ids, {**kwargs, "pixel_values": pixel_values}


def _register() -> None:
    """Make AutoConfig and the auto model classes know Mono-InternVL; again is harmless."""
    AutoConfig.register(MODEL_TYPE, MonoInternVLConfig, exist_ok=True)
    AutoModel.register(MonoInternVLConfig, MonoInternVLModel, exist_ok=True)
    AutoModelForImageTextToText.register(
        MonoInternVLConfig, MonoInternVLForConditionalGeneration, exist_ok=True
    )


_register()
