"""Mono-InternVL as a model class: routing, packing, generation, checkpointing, files, LoRA.

The outputs of the reference implementation are met in tests/models/test_mono_layout.py.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_mono import IMAGE, TILE_PX, TILE_TOKENS, CountTokens, make_config, make_model, sample
from torch import nn
from transformers import (
    LlamaForCausalLM,
)
from transformers.models.internvl.modeling_internvl import InternVLModel

from adapt.models.mono import (
    MonoInternVLConfig,
    MonoInternVLForConditionalGeneration,
    route,
)


def gradients(model: nn.Module, **inputs: torch.Tensor) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    model(use_cache=False, **inputs).loss.backward()
    return {
        name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
    }


# Routing


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=5))
def test_routing_sorts_tokens_and_puts_them_back(rows):
    mask = torch.tensor(rows)
    routing = route(mask)
    flat = mask.flatten().tolist()
    assert routing.text.tolist() == [i for i, visual in enumerate(flat) if not visual]
    assert routing.visual.tolist() == [i for i, visual in enumerate(flat) if visual]
    merged = torch.cat((routing.text, routing.visual))[routing.restore]
    assert merged.tolist() == list(range(len(flat)))


def test_each_expert_is_given_its_own_tokens_only():
    model = make_model()
    ids, pixels = sample(tiles=2, words=9)
    layer = model.model.language_model.layers[1]
    text, visual = CountTokens(layer.mlp), CountTokens(layer.visual_mlp)
    model(input_ids=ids, pixel_values=pixels)
    assert (text.seen, visual.seen) == ([9], [8])


def test_a_layer_equals_both_experts_on_every_token_and_a_choice_between():
    model = make_model()
    layer = model.model.language_model.layers[0]
    hidden = torch.randn(2, 6, 32)
    mask = torch.tensor([[True, False, True, False, False, False], [False] * 5 + [True]])
    expected = torch.where(mask[..., None], layer.visual_mlp(hidden), layer.mlp(hidden))
    torch.testing.assert_close(layer._experts(hidden, route(mask)), expected)


def test_text_alone_equals_llama_with_the_same_weights():
    """In eval mode, in training mode, and past the point where dynamic rope changes."""
    model = make_model(max_position_embeddings=16)
    llama = LlamaForCausalLM(model.config.text_config).eval()
    weights = {
        name.replace("model.language_model.", "model."): value
        for name, value in model.state_dict().items()
        if "vision_embeddings" not in name
        and "multi_modal_projector" not in name
        and "visual_mlp" not in name
    }
    llama.load_state_dict(weights)
    for length in (10, 40, 12):
        ids, _ = sample(tiles=0, words=length)
        expected = llama(input_ids=ids, labels=ids)
        for training in (False, True):
            actual = model.train(training)(input_ids=ids, labels=ids)
            torch.testing.assert_close(actual.logits, expected.logits)
            torch.testing.assert_close(actual.loss, expected.loss)


def test_a_written_image_token_without_picture_is_text():
    model = make_model()
    ids = torch.tensor([[5, IMAGE, 7]])
    expected = model(input_ids=ids).logits
    torch.testing.assert_close(model.train()(input_ids=ids).logits, expected)


def test_text_alone_in_training_gives_zero_gradients_not_missing_ones():
    model = make_model().train()
    ids, _ = sample(tiles=0, words=8)
    grads = gradients(model, input_ids=ids, labels=ids)
    visual = {
        name
        for name in grads
        if "vision_embeddings" in name or "multi_modal" in name or "visual_mlp" in name
    }
    assert len(visual) == 4 + 6 + 3 * 3
    for name, grad in grads.items():
        assert grad is not None, name
        assert bool(grad.any()) == (name not in visual), name


def test_pictures_alone_still_reach_the_text_experts():
    model = make_model().train()
    ids, pixels = sample(tiles=2, words=0)
    layer = model.model.language_model.layers[0]
    text, visual = CountTokens(layer.mlp), CountTokens(layer.visual_mlp)
    grads = gradients(model, input_ids=ids, labels=ids, pixel_values=pixels)
    assert (text.seen, visual.seen) == ([0], [8])
    assert not grads["model.language_model.layers.0.mlp.gate_proj.weight"].any()
    assert grads["model.language_model.layers.0.visual_mlp.gate_proj.weight"].any()


def order_of_use(model: nn.Module, **inputs: object) -> list[str]:
    """Return the modules that hold parameters, in the order in which a forward pass meets them."""
    met: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: met.append(name))
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return met


@pytest.mark.parametrize("training", [True, False])
def test_all_ranks_meet_all_parameters_in_one_order_whatever_their_rows_hold(training):
    """ZeRO-3 gathers parameters as modules run: ranks that differ would wait for ever."""
    model = make_model().train(training)
    if not training:
        # What ZeRO-3 leaves on a parameter; evaluation inside training must hold too.
        model.model.vision_embeddings.cls_token.ds_id = 0
    ids, pixels = sample(tiles=2, words=6)
    mixed = order_of_use(model, input_ids=ids, pixel_values=pixels)
    assert len(mixed) == len(set(mixed)) == 6 + 3 * 12 + 2
    assert order_of_use(model, input_ids=sample(tiles=0, words=6)[0]) == mixed
    pictures, pixels = sample(tiles=3, words=0)
    assert order_of_use(model, input_ids=pictures, pixel_values=pixels) == mixed


def test_visual_part_is_left_alone_in_eval_mode_without_pictures():
    model = make_model()
    layer = model.model.language_model.layers[0]
    visual, projector = (
        CountTokens(layer.visual_mlp),
        CountTokens(model.model.multi_modal_projector),
    )
    model(input_ids=sample(tiles=0, words=5)[0])
    assert (visual.seen, projector.seen) == ([], [])


# Features


def test_pixel_shuffle_is_that_of_internvl():
    model = make_model().model
    patches = torch.randn(3, 16, 16)
    reference = InternVLModel.pixel_shuffle(None, patches.view(3, 4, 4, 16), 0.5)
    assert torch.equal(model._pixel_shuffle(patches), reference.reshape(3, 4, 64))


def test_image_features_replace_image_tokens_in_reading_order():
    model = make_model()
    ids, pixels = sample(tiles=2, words=4)
    features = model.get_image_features(pixels)
    assert features.pooler_output.shape == (2, TILE_TOKENS, 32)
    assert features.last_hidden_state.shape == (2, 16, 16)
    seen: list[torch.Tensor] = []
    first = model.model.language_model.layers[0]
    first.input_layernorm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    output = model(input_ids=ids, pixel_values=pixels)
    torch.testing.assert_close(seen[0][0, 2:10], features.pooler_output.flatten(0, 1))
    torch.testing.assert_close(output.image_hidden_states, features.pooler_output)


@pytest.mark.parametrize(
    ("tiles", "message"),
    [
        (1, r"1 tiles of 4 tokens need 4 image tokens, input_ids have 8"),
        (3, r"3 tiles of 4 tokens need 12 image tokens, input_ids have 8"),
    ],
)
def test_pictures_that_do_not_match_their_tokens_are_refused(tiles, message):
    ids, _ = sample(tiles=2, words=4)
    with pytest.raises(ValueError, match=message):
        make_model()(input_ids=ids, pixel_values=torch.zeros(tiles, 3, TILE_PX, TILE_PX))


def test_wrong_combinations_of_inputs_are_refused():
    model = make_model()
    ids, pixels = sample(tiles=1, words=2)
    embeddings = model.get_input_embeddings()(ids)
    with pytest.raises(ValueError, match="pixel_values need input_ids"):
        model(inputs_embeds=embeddings, pixel_values=pixels)
    for wrong in ({}, {"input_ids": ids, "inputs_embeds": embeddings}):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            model(**wrong)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_seq_length": 5}, "image_seq_length is 5, but 4x4 patches"),
        ({"downsample_ratio": 0.25}, "image_seq_length is 4, but 4x4 patches in blocks of 4x4"),
        ({"image_token_id": "90"}, "image_token_id"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(fields, message):
    config = make_config().to_dict()
    with pytest.raises(Exception, match=message):
        MonoInternVLConfig(**{**config, **fields})


# Packing and long rows


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_records_equal_separate_ones(attention):
    model = make_model()
    model.set_attn_implementation(attention)
    samples = [sample(2, 7, seed=1), sample(0, 5, seed=2), sample(1, 9, seed=3)]
    with torch.no_grad():
        separate = [
            model(input_ids=ids, pixel_values=pixels if len(pixels) else None).logits[0]
            for ids, pixels in samples
        ]
        packed = model(
            input_ids=torch.cat([ids for ids, _ in samples], dim=1),
            pixel_values=torch.cat([pixels for _, pixels in samples]),
            position_ids=torch.cat([torch.arange(ids.shape[1]) for ids, _ in samples])[None],
            attention_mask=None,
            use_cache=False,
        ).logits[0]
    torch.testing.assert_close(packed, torch.cat(separate), atol=2e-5, rtol=0)


def test_padded_batch_equals_single_rows():
    model = make_model()
    (long, pixels), (short, other) = sample(2, 7, seed=1), sample(1, 4, seed=2)
    padding = torch.zeros(1, long.shape[1] - short.shape[1], dtype=torch.long)
    batch = torch.cat((long, torch.cat((padding, short), dim=1)))
    mask = torch.ones_like(batch)
    mask[1, : padding.shape[1]] = 0
    logits = model(
        input_ids=batch,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        pixel_values=torch.cat((pixels, other)),
    ).logits
    single = model(input_ids=short, pixel_values=other).logits[0]
    torch.testing.assert_close(logits[1, padding.shape[1] :], single, atol=2e-5, rtol=0)


def test_forty_tiles_at_inference_past_the_rope_switch():
    """40 tiles of the full 256 tokens; the first tile's tokens do not see what follows."""
    config = make_config(
        num_hidden_layers=1, hidden_size=16, num_attention_heads=1, num_key_value_heads=1
    ).to_dict()
    config["vision_config"].update(image_size=(448, 448), patch_size=(14, 14), hidden_size=4)
    config["text_config"].update(max_position_embeddings=8192, head_dim=16)
    config["image_seq_length"] = 256
    model = MonoInternVLForConditionalGeneration(MonoInternVLConfig(**config)).eval()
    ids = torch.tensor([[1, 2, *[IMAGE] * (40 * 256), 3, 4]])
    pixels = torch.randn(40, 3, 448, 448)
    output = model.generate(
        input_ids=ids, pixel_values=pixels, max_new_tokens=2, do_sample=False, eos_token_id=None
    )
    assert output.shape == (1, ids.shape[1] + 2)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels, logits_to_keep=1).logits
    assert torch.isfinite(logits).all()
    assert output[0, -2] == logits[0, 0].argmax()


def test_twenty_five_tiles_in_a_training_step():
    model = make_model().train()
    ids, pixels = sample(tiles=25, words=12)
    labels = ids.masked_fill(ids == IMAGE, -100)
    layer = model.model.language_model.layers[2]
    visual = CountTokens(layer.visual_mlp)
    grads = gradients(model, input_ids=ids, labels=labels, pixel_values=pixels)
    assert visual.seen == [25 * TILE_TOKENS]
    assert all(torch.isfinite(grad).all() for grad in grads.values())


# Loss and training


def test_loss_is_the_mean_over_supervised_tokens():
    model = make_model()
    ids, pixels = sample(tiles=1, words=8)
    labels = ids.masked_fill(ids == IMAGE, -100)
    output = model(input_ids=ids, pixel_values=pixels, labels=labels)
    expected = nn.functional.cross_entropy(output.logits[0, :-1], labels[0, 1:])
    torch.testing.assert_close(output.loss, expected)


def test_activation_checkpointing_gives_the_same_gradients():
    model = make_model().train()
    ids, pixels = sample(tiles=2, words=6)
    plain = gradients(model, input_ids=ids, labels=ids, pixel_values=pixels)
    for reentrant in (False, True):
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        layer = CountTokens(model.model.language_model.layers[0].mlp)
        checkpointed = gradients(model, input_ids=ids, labels=ids, pixel_values=pixels)
        assert layer.seen == [6, 6]  # forwards, and again on the way back
        torch.testing.assert_close(checkpointed, plain)


def test_training_learns_a_picture():
    """The answer depends on the tile alone: only the visual part can tell."""
    torch.manual_seed(0)
    model = make_model(initializer_range=0.05).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pixels = torch.randn(2, 3, TILE_PX, TILE_PX)
    row = [1, *[IMAGE] * TILE_TOKENS, 2]
    ids = torch.tensor([[*row, 10], [*row, 20]])
    labels = ids.clone()
    labels[:, :-1] = -100
    for _ in range(40):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels, pixel_values=pixels, use_cache=False).loss.backward()
        optimizer.step()
    logits = model.eval()(input_ids=ids[:, :-1], pixel_values=pixels, logits_to_keep=1).logits
    assert logits[:, 0].argmax(-1).tolist() == [10, 20]


# Generation
