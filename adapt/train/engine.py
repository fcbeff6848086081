"""The model under DeepSpeed: what is trained, wrapped, and stepped.

    handle.load -> freeze | LoRA -> drop path -> PackedModel -> deepspeed.initialize

One engine serves every method and every ZeRO stage, on a GPU and, for tests, on the CPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from adapt.errors import EnvironmentFault, RecipeError
from adapt.models.drop_path import inject_drop_path
from adapt.models.freeze import FreezeReport, freeze, lora_pattern, report_parameters, train_mode
from adapt.models.presets import model_class
from adapt.train.collate import Pack
from adapt.train.optimizer import deepspeed_config, make_optimizer, refusals_named
from adapt.train.packed_model import PackedModel

if TYPE_CHECKING:
    from adapt.models.handle import ModelHandle
    from adapt.recipe import Recipe

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class Engine:
    """A model ready for steps.

    Args:
        deepspeed: The engine of `deepspeed.initialize`.
        packed: The module inside it.
        optimizer: Torch's, whose learning rate is set before every step.
        adapter: The peft model around the base, None for methods without LoRA.
        device: Where packs go.
        stage: ZeRO stage.
        counts: Parameters trained and in all.
    """

    deepspeed: Any
    packed: PackedModel
    optimizer: torch.optim.Optimizer
    adapter: Any
    device: torch.device
    stage: int
    counts: FreezeReport

    def set_learning_rate(self, value: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = value

    def accumulate(self, pack: Pack, *, scale: float, chunks: int) -> Tensor:
        """Add a pack's gradient; the last pack of a step also updates the weights.

        Args:
            pack: What to run.
            scale: 1 / the step's total weight.
            chunks: Parts of the cross-entropy, the same on all ranks.

        Returns:
            [] float32, this pack's share of the step's loss.

        Raises:
            EnvironmentFault: The GPU's memory is too small for the pack.
        """
        try:
            share: Tensor = self.deepspeed(**pack.inputs(self.device), chunks=chunks) * scale
            # DeepSpeed takes the mean over ranks; a step is their sum.
            self.deepspeed.backward(share * dist.get_world_size(), scale_wrt_gas=False)
            self.deepspeed.step()
        except torch.OutOfMemoryError as error:
            raise EnvironmentFault(
                f"{self.device}: out of memory in a pack of {pack.input_ids.shape[1]} tokens and "
                f"{len(pack.tiles)} tiles; lower max_pack_tokens and max_pack_tiles, or set "
                f"activation_checkpointing=true, deepspeed=zero2-offload, method=lora"
            ) from error
        return share.detach()

    def grad_norm(self) -> float:
        """Return the norm of the last step's gradient before clipping."""
        return float(self.deepspeed.get_global_grad_norm())

    @contextmanager
    def evaluating(self) -> Iterator[Any]:
        """Give the model to call with a pack's inputs for logits; no dropout, no gradient."""
        self.packed.eval()
        try:
            with torch.no_grad():
                yield self.deepspeed
        finally:
            self.start_training()

    def start_training(self) -> None:
        """Put the model in training mode, a frozen tower excepted."""
        self.packed.train()
        train_mode(self.packed.core)


def build_engine(handle: ModelHandle, recipe: Recipe, device: torch.device) -> Engine:
    """Load the model and wrap it as the recipe says.

    Raises:
        RecipeError: The method does not fit the model, or DeepSpeed refuses its file.
        EnvironmentFault: QLoRA without what it needs.
    """
    import deepspeed

    dtype = DTYPES[recipe.dtype]
    if recipe.method == "qlora":
        core = load_quantised(handle, device)
    else:
        core = handle.load(dtype, seed=recipe.seed)
    freeze(core, recipe.method, recipe.stage)
    adapter = add_lora(core, recipe) if recipe.method in ("lora", "qlora") else None
    inject_drop_path(core, recipe.drop_path)
    if recipe.activation_checkpointing:
        enable_checkpointing(core)
    packed = PackedModel(core)
    counts = report_parameters(core)
    optimizer = make_optimizer(core, recipe)
    config = deepspeed_config(recipe, trained=counts.trainable)
    with refusals_named(recipe):
        wrapped, *_ = deepspeed.initialize(
            model=packed, optimizer=optimizer, config=config, dist_init_required=False
        )
    engine = Engine(
        deepspeed=wrapped,
        packed=packed,
        optimizer=optimizer,
        adapter=adapter,
        device=device,
        stage=int(wrapped.zero_optimization_stage()),
        counts=counts,
    )
    engine.start_training()
    return engine


def add_lora(core: Any, recipe: Recipe) -> Any:
    """Put adapters into `core` and return the peft model around it."""
    import peft

    options = peft.LoraConfig(
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules=lora_pattern(core, vision=recipe.lora.vision),
        task_type="CAUSAL_LM",
    )
    # The adapters' first values are drawn here: the same on every rank and in every run.
    torch.manual_seed(recipe.seed)
    return peft.get_peft_model(core, options, adapter_name=ADAPTER, autocast_adapter_dtype=False)


def enable_checkpointing(core: Any) -> None:
    """Recompute activations in the backward pass."""
    # Its older name is deprecated, the newer one missing before transformers 5.21.
    newer = getattr(core, "activation_checkpointing_enable", None)
    (newer or core.gradient_checkpointing_enable)()


def load_quantised(handle: ModelHandle, device: torch.device) -> Any:
    """Load the base in 4 bits (NF4, computed in bfloat16).

    Raises:
        EnvironmentFault: There is no CUDA device, or bitsandbytes is not installed.
        RecipeError: The base has no weights to quantise.
    """
    lacking = [] if device.type == "cuda" else ["a CUDA device"]
    if importlib.util.find_spec("bitsandbytes") is None:
        lacking.append("bitsandbytes (pip install bitsandbytes)")
    if lacking:
        raise EnvironmentFault(
            f"method qlora needs {' and '.join(lacking)}, not found here; "
            f"--set method=lora does without"
        )
    if handle.folder is None:
        raise RecipeError(f"method qlora: {handle.name} is a random model; use --set method=lora")
    import transformers

    quantised = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return model_class(handle.architecture).from_pretrained(
        handle.folder,
        dtype=torch.bfloat16,
        quantization_config=quantised,
        device_map={"": device},
        local_files_only=True,
        use_safetensors=True,
    )
