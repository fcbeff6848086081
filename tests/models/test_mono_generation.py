"""Mono-InternVL after training: generation with a cache, saving, number formats, LoRA."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_mono import IMAGE, TILE_TOKENS, CountTokens, make_config, make_model, sample
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
)

from adapt.models.freeze import lora_targets
from adapt.models.mono import (
    MonoInternVLConfig,
    MonoInternVLForConditionalGeneration,
    MonoInternVLModel,
    Routing,
    route,
)


def generate(model: nn.Module, ids: torch.Tensor, **options: object) -> list[list[int]]:
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, **options}
    return model.generate(input_ids=ids, **settings)[:, ids.shape[1] :].tolist()


def test_generation_equals_the_argmax_of_whole_forward_passes():
    model = make_model()
    ids, pixels = sample(tiles=2, words=5)
    row = ids
    for _ in range(6):
        following = model(input_ids=row, pixel_values=pixels).logits[:, -1:].argmax(-1)
        row = torch.cat((row, following), dim=1)
    expected = row[:, ids.shape[1] :].tolist()
    assert generate(model, ids, pixel_values=pixels) == expected
    assert generate(model, ids, pixel_values=pixels, use_cache=False) == expected


def test_decode_steps_embed_no_picture_and_use_the_text_experts_alone():
    model = make_model()
    ids, pixels = sample(tiles=2, words=5)
    layer = model.model.language_model.layers[0]
    text, visual = CountTokens(layer.mlp), CountTokens(layer.visual_mlp)
    projector = CountTokens(model.model.multi_modal_projector)
    generate(model, ids, pixel_values=pixels, max_new_tokens=4)
    assert (text.seen, visual.seen, projector.seen) == ([5, 1, 1, 1], [8], [8])


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_beams_keep_the_tiles_of_each_row_in_order(options):
    """Rows of a batch with different tiles give the answers of each row alone."""
    model = make_model()
    rows = [sample(tiles=2, words=6, seed=seed) for seed in (1, 2)]
    alone = [generate(model, ids, pixel_values=pixels, **options) for ids, pixels in rows]
    batch = generate(
        model,
        torch.cat([ids for ids, _ in rows]),
        pixel_values=torch.cat([pixels for _, pixels in rows]),
        attention_mask=torch.ones(2, 14, dtype=torch.long),
        **options,
    )
    assert batch == alone[0] + alone[1]


def test_an_image_token_written_by_the_model_is_text():
    model = make_model()
    ids, pixels = sample(tiles=1, words=5)
    with torch.no_grad():
        model.lm_head.weight[IMAGE] = 0
        model.lm_head.weight.mul_(0)
        model.lm_head.weight[IMAGE] = 1e-3 * torch.ones(32)
    visual = CountTokens(model.model.language_model.layers[0].visual_mlp)
    generate(model, ids, pixel_values=pixels, max_new_tokens=3, suppress_tokens=[0])
    assert visual.seen == [TILE_TOKENS]


# Files, auto classes, adapters


def test_save_and_load_through_the_auto_classes(tmp_path):
    model = make_model()
    ids, pixels = sample(tiles=1, words=5)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, MonoInternVLConfig)
    assert (config.image_token_id, config.text_config.model_type) == (IMAGE, "llama")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert isinstance(loaded, MonoInternVLForConditionalGeneration)
    expected = model(input_ids=ids, pixel_values=pixels).logits
    assert torch.equal(loaded(input_ids=ids, pixel_values=pixels).logits, expected)
    body = AutoModel.from_pretrained(tmp_path)
    assert isinstance(body, MonoInternVLModel)
    hidden = body(input_ids=ids, pixel_values=pixels).last_hidden_state
    assert torch.equal(model.lm_head(hidden), expected)


def test_head_and_embeddings_are_untied_unless_asked():
    model = make_model()
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    config = make_config()
    config.tie_word_embeddings = True
    tied = MonoInternVLForConditionalGeneration(config)
    assert tied.lm_head.weight is tied.get_input_embeddings().weight


def test_vocabulary_can_grow():
    model = make_model()
    model.resize_token_embeddings(100, mean_resizing=False)
    assert (model.lm_head.weight.shape[0], model.config.text_config.vocab_size) == (100, 100)
    assert model(input_ids=torch.tensor([[99]])).logits.shape == (1, 1, 100)


def test_bfloat16_runs_with_float32_pixels():
    model = make_model().to(torch.bfloat16)
    ids, pixels = sample(tiles=1, words=5)
    logits = model(input_ids=ids, pixel_values=pixels).logits
    assert logits.dtype == torch.bfloat16
    exact = make_model()(input_ids=ids, pixel_values=pixels).logits
    assert (logits.float() - exact).abs().max() < 0.05 * exact.abs().max()


# peft asks transformers for a property under its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora_trains_and_merges(tmp_path):
    model = make_model()
    ids, pixels = sample(tiles=2, words=6)
    base = {name: value.clone() for name, value in model.state_dict().items()}
    names = lora_targets(model, vision=True)
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules=names, init_lora_weights=False)
    ).train()
    adapted(input_ids=ids, labels=ids, pixel_values=pixels, use_cache=False).loss.backward()
    with_grad = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert len(with_grad) == 2 * len(names)
    assert all(".lora_" in name for name in with_grad)
    expected = adapted.eval()(input_ids=ids, pixel_values=pixels).logits
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(
        merged(input_ids=ids, pixel_values=pixels).logits, expected, atol=1e-4, rtol=1e-4
    )
    changed = {name for name, value in merged.state_dict().items() if not value.equal(base[name])}
    assert changed == {f"{name}.weight" for name in names}


def test_routing_survives_being_moved_with_a_call():
    """Accelerate and checkpointing take calls apart by tuples: a routing must be one."""
    assert isinstance(route(torch.tensor([[True, False]])), tuple)
    assert Routing._fields == ("text", "visual", "restore")
