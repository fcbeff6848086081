"""What a training method trains: which parameters are frozen, which modules get a LoRA.

    full         everything; a Mono-InternVL stage narrows it:
      concept, semantic     patch embedding (positions, projector) and visual experts
      alignment             those, and the attention of every layer
      instruction           everything
    freeze-vit   everything but the vision tower
    lora, qlora  nothing of the base: the adapters are added, and trained, by peft

A frozen vision tower is put in eval mode, so that drop path and dropout are off there. A later
`model.train()` undoes that; call `train_mode` in its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from adapt.errors import RecipeError, nearest
from adapt.models.mono import MonoInternVLModel
from adapt.recipe import METHODS, STAGES

_MONO_VISUAL = r".*(vision_embeddings|multi_modal_projector|visual_mlp)\..*"
_MONO_ATTENTION = r".*language_model\.layers\.\d+\.self_attn\..*"
_STAGE_TRAINS = {
    "concept": (_MONO_VISUAL,),
    "semantic": (_MONO_VISUAL,),
    "alignment": (_MONO_VISUAL, _MONO_ATTENTION),
    "instruction": (r".*",),
}

# Full names of linear modules. Q, k, v apart is Qwen2 and Llama, fused is Phi-3.
_LANGUAGE = (
    r"model\.language_model\.layers\.\d+\."
    r"(self_attn\.(q_proj|k_proj|v_proj|qkv_proj|o_proj)"
    r"|mlp\.(gate_proj|up_proj|gate_up_proj|down_proj))"
)
_TOWER = (
    r"model\.vision_tower\.encoder\.layer\.\d+\."
    r"(attention\.(q_proj|k_proj|v_proj|projection_layer)|mlp\.(fc1|fc2))"
)
_VISUAL_EXPERTS = r"model\.language_model\.layers\.\d+\.visual_mlp\.(gate_proj|up_proj|down_proj)"


@dataclass(frozen=True)
class FreezeReport:
    """How much of a model is trained.

    Attributes:
        trainable: Parameters that take part in training.
        total: All parameters.
    """

    trainable: int
    total: int

    def __str__(self) -> str:
        share = self.trainable / self.total if self.total else 0.0
        return f"{self.trainable:,} of {self.total:,} parameters are trained ({share:.1%})"


def freeze(model: nn.Module, method: str, stage: str | None = None) -> FreezeReport:
    """Mark what `method` trains, and put a frozen vision tower in eval mode.

    Args:
        model: A native model, before peft or DeepSpeed wraps it. Marks of an earlier call go.
        method: One of METHODS.
        stage: One of STAGES, of Mono-InternVL with method `full` only; None is `instruction`.

    Returns:
        Parameter counts; for `lora` those of the base, 0 trainable.

    Raises:
        RecipeError: Unknown names, or a method or stage that this model has no use for.
    """
    _check(model, method, stage)
    patterns = _STAGE_TRAINS[stage] if stage else (r".*",)
    trained = re.compile("|".join(patterns))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(
            method in ("full", "freeze-vit") and trained.fullmatch(name) is not None
        )
    if method == "freeze-vit":
        for tower in _towers(model):
            tower.requires_grad_(False)
    for tower in _frozen_towers(model):
        tower.eval()
    return report_parameters(model)


def _check(model: nn.Module, method: str, stage: str | None) -> None:
    kind = type(model).__name__
    if method not in METHODS:
        raise RecipeError(f"method: unknown method {method!r}{nearest(method, METHODS)}")
    if stage is not None and stage not in STAGES:
        raise RecipeError(f"stage: unknown stage {stage!r}{nearest(stage, STAGES)}")
    monolithic = any(isinstance(module, MonoInternVLModel) for module in model.modules())
    if stage is not None and not monolithic:
        raise RecipeError(
            f"stage: {stage} is a training stage of Mono-InternVL, the model is a {kind}; "
            f"remove stage"
        )
    if stage is not None and method != "full":
        raise RecipeError(f"stage: {stage} goes with method full, found method {method}")
    if method == "freeze-vit" and not any(True for _ in _towers(model)):
        raise RecipeError(
            f"method: freeze-vit needs a vision tower, {kind} has none; "
            f"use method full with stage concept, semantic or alignment"
        )


def train_mode(model: nn.Module) -> None:
    """Put the model in training mode, but a vision tower that is wholly frozen in eval mode."""
    model.train()
    for tower in _frozen_towers(model):
        tower.eval()


def report_parameters(model: nn.Module) -> FreezeReport:
    """Count parameters, each once; those partitioned by ZeRO-3 by their full size."""
    trainable = total = 0
    for parameter in model.parameters():
        size = int(getattr(parameter, "ds_numel", parameter.numel()))
        total += size
        trainable += size if parameter.requires_grad else 0
    return FreezeReport(trainable, total)


def lora_pattern(model: nn.Module, *, vision: bool) -> str:
    """Return a regular expression for the full names of the modules that get a LoRA.

    peft takes it as `target_modules`, and its adapter_config.json stays short.

    Args:
        model: A native model, not yet wrapped.
        vision: Also the vision tower's attention and MLPs, or Mono-InternVL's visual experts.

    Raises:
        RecipeError: The model has no such modules.
    """
    parts = [_LANGUAGE, *((_TOWER, _VISUAL_EXPERTS) if vision else ())]
    names = {part: _linear_names(model, part) for part in parts}
    used = [part for part in parts if names[part]]
    if not names[_LANGUAGE]:
        raise RecipeError(
            f"lora: {type(model).__name__} has no module that matches {_LANGUAGE}; expected a "
            f"native InternVL or Mono-InternVL model: import the checkpoint first"
        )
    return "|".join(f"({part})" for part in used)


def lora_targets(model: nn.Module, *, vision: bool) -> list[str]:
    """Return the full names of the modules that get a LoRA, in the model's order.

    Args:
        model: A native model, not yet wrapped.
        vision: See lora_pattern.

    Raises:
        RecipeError: The model has no such modules.
    """
    return _linear_names(model, lora_pattern(model, vision=vision))


def _linear_names(model: nn.Module, pattern: str) -> list[str]:
    matches = re.compile(pattern).fullmatch
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and matches(name)
    ]


def _towers(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if isinstance(module, InternVLVisionModel))


def _frozen_towers(model: nn.Module) -> Iterator[nn.Module]:
    for tower in _towers(model):
        if not any(parameter.requires_grad for parameter in tower.parameters()):
            yield tower
