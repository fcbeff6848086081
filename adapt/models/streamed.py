"""Run a native checkpoint without ever holding it: weights come and go with each module.

The model is transformers' own class, built on the meta device. Before a module runs, its own
weights are read from the safetensors files in float32; after it they are dropped. So a 2B model is
checked within little more than the memory of its largest matrix, and what is checked is the files.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adapt.models.layouts import Layout
from adapt.models.lora import Adapter, put_adapter
from adapt.models.shards import Checkpoint


class NativeForward:
    """Runs a native checkpoint.

    Args:
        layout: Of the checkpoint.
        config: Its native config.
        checkpoint: Its tensors, under their names in memory.
        adapter: LoRA to put on; its weights stay in memory.
    """

    def __init__(
        self, layout: Layout, config: Any, checkpoint: Checkpoint, adapter: Adapter | None = None
    ) -> None:
        self._checkpoint = checkpoint
        self._vocabulary = config.text_config.vocab_size
        with torch.device("meta"):
            model = layout.build(config)
        model.eval().requires_grad_(False)
        language = model.model.language_model
        self._language, self._text_config = language, config.text_config
        # A tied head has no tensor of its own.
        head = _HEAD if _HEAD in checkpoint.specs else _EMBEDDING
        model.lm_head = _Head(checkpoint, head)
        for name, module in model.named_modules():
            own = {
                leaf: f"{name}.{leaf}".lstrip(".")
                for leaf, _ in module.named_parameters(recurse=False)
            }
            if own:
                module.register_forward_pre_hook(partial(self._fetch, own))
                module.register_forward_hook(partial(self._drop, own))
        # The hooks stay on the modules that peft wraps.
        self._model = model if adapter is None else put_adapter(model, adapter)

    @torch.no_grad()
    def logits(
        self,
        input_ids: Tensor,
        positions: Tensor,
        pixel_values: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Return logits of one row; see `OriginalForward.logits`."""
        # The rope's frequencies are buffers that no file holds: made off the meta device, and anew
        # for each row, because a dynamic rope would keep those of the longest row so far.
        language = self._language
        language.rotary_emb = type(language.rotary_emb)(config=self._text_config)
        outputs = self._model(
            input_ids=input_ids[None],
            position_ids=positions[None],
            pixel_values=pixel_values,
            attention_mask=None,
            use_cache=False,
            logits_to_keep=0 if keep is None else keep,
        )
        logits: Tensor = outputs.logits[0]
        return logits

    def _fetch(self, own: dict[str, str], module: nn.Module, _inputs: Any) -> None:
        for leaf, name in own.items():
            tensor = self._checkpoint.read(name)
            # Of an embedding a few rows are used: they alone are read, and made float32 after.
            weight = tensor if isinstance(module, nn.Embedding) else tensor.float()
            module.register_parameter(leaf, nn.Parameter(weight, requires_grad=False))

    def _drop(self, own: dict[str, str], module: nn.Module, _inputs: Any, outputs: Any) -> Any:
        for leaf in own:
            parameter = getattr(module, leaf).to("meta")
            module.register_parameter(leaf, nn.Parameter(parameter, requires_grad=False))
        return outputs.float() if isinstance(module, nn.Embedding) else None


class _Head(nn.Module):
    """The head, which is the largest matrix: multiplied a block of words at a time."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        super().__init__()
        self._checkpoint, self._name = checkpoint, name

    def forward(self, hidden: Tensor) -> Tensor:
        blocks = self._checkpoint.row_blocks(self._name, _HEAD_ROWS)
        return torch.cat([hidden @ rows.float().T for rows in blocks], -1)


_HEAD, _EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
_HEAD_ROWS = 8192
