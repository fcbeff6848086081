"""Comparison of checkpoints: the reference forward, and what the comparison finds."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapt.cli import run
from adapt.errors import CheckFailed, CheckpointError
from adapt.models.checkpoint_config import native_config, read_config
from adapt.models.config_maps import with_defaults
from adapt.models.importing import import_checkpoint
from adapt.models.known_layouts import layout_of_native
from adapt.models.original_forward import OriginalForward, inverse_frequencies, pixel_shuffle
from adapt.models.shards import open_checkpoint
from adapt.models.streamed import NativeForward
from adapt.models.verify import Difference, compare, open_side, probes, verify_checkpoints

KINDS = ("qwen2", "internlm2", "phi3", "mono")
IMAGE_TOKEN = 5


@pytest.fixture
def make_pair(make_original, tmp_path):
    """Return the function that writes an original checkpoint and its import."""

    def make(kind="internlm2", **options):
        source, native = make_original(tmp_path / "source", kind, **options), tmp_path / "native"
        import_checkpoint(source, native, verify=False, image_token_id=IMAGE_TOKEN)
        return source, native

    return make


def edit_config(folder, change):
    fields = read_config(folder)
    change(fields)
    (folder / "config.json").write_text(json.dumps(fields))


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", KINDS)
def test_plain_forward_gives_what_the_reference_gives(shared, kind):
    folder = shared / "goldens" / "checkpoints" / kind
    expected = json.loads((folder / "expected.json").read_text())
    inputs, wanted = (load_file(folder / f"{name}.safetensors") for name in ("inputs", "expected"))
    forward = OriginalForward(
        open_checkpoint(folder), with_defaults(read_config(folder)), expected["image_token_id"]
    )
    pixel_values = inputs["pixel_values"].float()
    supervised = (inputs["labels"][0, 1:] != -100).nonzero().squeeze(1)
    logits = forward.logits(
        inputs["input_ids"][0], torch.arange(inputs["input_ids"].shape[1]), pixel_values, supervised
    )
    torch.testing.assert_close(logits, wanted["logits_supervised"], atol=1e-5, rtol=0)
    features = forward.features(pixel_values[:1])[0]
    torch.testing.assert_close(features, wanted["image_features_first_tile"], atol=1e-5, rtol=0)


def test_pixel_shuffle_takes_blocks_row_by_row():
    # 4x4 patches of one channel, numbered in reading order.
    shuffled = pixel_shuffle(torch.arange(16.0).reshape(1, 16, 1), 0.5)
    assert shuffled[0].tolist() == [
        [0.0, 1.0, 4.0, 5.0],
        [2.0, 3.0, 6.0, 7.0],
        [8.0, 9.0, 12.0, 13.0],
        [10.0, 11.0, 14.0, 15.0],
    ]


def test_dynamic_rope_changes_beyond_the_longest():
    config = {
        "rope_theta": 100.0,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "max_position_embeddings": 64,
    }
    within, _ = inverse_frequencies(config, 4, length=64)
    beyond, scale = inverse_frequencies(config, 4, length=128)
    assert within.tolist() == pytest.approx([1.0, 0.1])
    # The base grows by (2 * 128 / 64 - 1) ** (4 / 2).
    assert beyond.tolist() == pytest.approx([1.0, 1 / math.sqrt(100.0 * 9)])
    assert scale == 1.0


def test_long_rope_switches_its_factors():
    config = {
        "rope_theta": 100.0,
        "rope_scaling": {"rope_type": "longrope", "short_factor": [1, 2], "long_factor": [4, 5]},
        "max_position_embeddings": 64,
        "original_max_position_embeddings": 32,
    }
    short, scale = inverse_frequencies(config, 4, length=32)
    long, _ = inverse_frequencies(config, 4, length=33)
    assert short.tolist() == pytest.approx([1.0, 0.05])
    assert long.tolist() == pytest.approx([0.25, 0.02])
    assert scale == pytest.approx(math.sqrt(1 + math.log(2) / math.log(32)))


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_forward_is_that_of_the_loaded_model(make_pair, kind):
    _, native = make_pair(kind)
    fields = read_config(native)
    layout, config = layout_of_native(fields), native_config(fields)
    checkpoint = open_checkpoint(native).renamed(layout.memory_name)
    forward = NativeForward(layout, config, checkpoint)
    model = type(layout.build(config)).from_pretrained(native).eval()
    for probe in probes(config):
        streamed = forward.logits(
            probe.input_ids, probe.positions, probe.pixel_values, probe.compared
        )
        with torch.no_grad():
            whole = model(
                input_ids=probe.input_ids[None],
                position_ids=probe.positions[None],
                pixel_values=probe.pixel_values,
                use_cache=False,
            ).logits[0, probe.compared]
        torch.testing.assert_close(streamed, whole, atol=1e-5, rtol=1e-5)
    # Whatever was fetched has been dropped.
    assert {parameter.device.type for parameter in forward._model.parameters()} == {"meta"}


def test_probes_are_a_picture_with_text_and_text_beyond_the_switch(make_pair):
    _, native = make_pair("phi3")
    picture, far = probes(native_config(read_config(native)))
    image = picture.input_ids == IMAGE_TOKEN
    assert image.tolist() == [False] * 12 + [True] * 4 + [False] * 12
    assert picture.positions.tolist() == list(range(28))
    assert picture.pixel_values.shape == (1, 3, 56, 56)
    assert picture.compared.tolist() == list(range(28))
    assert far.positions.tolist() == list(range(32, 48))
    assert far.pixel_values is None
    assert IMAGE_TOKEN not in far.input_ids


def swap_queries(tensors):
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name].roll(4, 0)


def spoil(tensors):
    tensors["multi_modal_projector.linear_1.bias"][0] = torch.nan


def tie(tensors):
    embedding = tensors["language_model.model.embed_tokens.weight"]
    tensors["language_model.lm_head.weight"] = embedding.clone()


WRONG = {
    "heads in another order": ("internlm2", None, swap_queries),
    "a NaN": ("internlm2", None, spoil),
    "a head that is the embedding": ("qwen2", None, tie),
    "another rope base": (
        "qwen2",
        lambda fields: fields["text_config"]["rope_parameters"].update(rope_theta=9000.0),
        None,
    ),
    "no dynamic rope": (
        "internlm2",
        lambda fields: fields["text_config"].update(
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0}
        ),
        None,
    ),
    "other long factors": (
        "phi3",
        lambda fields: fields["text_config"]["rope_parameters"].update(long_factor=[1.0, 1.1]),
        None,
    ),
    "another epsilon": (
        "qwen2",
        lambda fields: fields["text_config"].update(rms_norm_eps=1e-1),
        None,
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_every_difference_is_found(make_pair, case):
    kind, config, tensors = WRONG[case]
    source, native = make_pair(kind)
    assert verify_checkpoints(source, native, image_token_id=IMAGE_TOKEN).is_within
    if config is not None:
        edit_config(native, config)
    if tensors is not None:
        edit_tensors(native, tensors)
    message = (
        r"native computes logits that are no numbers \(nan\)"
        if case == "a NaN"
        else r"source and .*native do not compute the same: larg"
    )
    with pytest.raises(CheckFailed, match=message):
        verify_checkpoints(source, native, image_token_id=IMAGE_TOKEN)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_weights_are_given_room_and_no_more(make_pair, tmp_path, dtype):
    _, native = make_pair()
    rounded = tmp_path / "rounded"
    shutil.copytree(native, rounded)
    edit_tensors(
        rounded, lambda tensors: tensors.update({k: v.to(dtype) for k, v in tensors.items()})
    )
    difference = verify_checkpoints(native, rounded)
    assert difference.largest / max(difference.scale, 1.0) > 1e-4
    edit_tensors(rounded, swap_queries)
    with pytest.raises(CheckFailed):
        verify_checkpoints(native, rounded)


def test_the_same_in_any_two_layouts(make_pair, tmp_path, capsys):
    source, native = make_pair()
    shutil.copytree(source, tmp_path / "copy")
    for a, b in ((source, native), (native, source), (native, native), (source, "copy")):
        assert run(["models", "verify", str(a), str(tmp_path / b), "--image-token-id", "5"]) == 0
        assert "largest logit difference" in capsys.readouterr().out


def test_sizes_that_differ_are_told(make_pair, make_original, tmp_path, capsys):
    source, _ = make_pair()
    other = make_original(tmp_path / "other", llm={"vocab_size": 97})
    arguments = ["models", "verify", str(source), str(other), "--image-token-id", "5"]
    assert run(arguments) == 2
    assert "not the same model: text_config.vocab_size is 96 in one, 97" in capsys.readouterr().err


def test_disagreement_is_exit_status_1(make_pair, capsys):
    source, native = make_pair()
    edit_tensors(native, swap_queries)
    assert run(["models", "verify", str(source), str(native)]) == 1
    assert "do not compute the same" in capsys.readouterr().err


@pytest.mark.parametrize("side", [0, 1])
def test_a_tensor_that_is_missing_is_told(make_pair, side):
    pair = make_pair()
    path = pair[side] / "model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    del tensors[name]
    save_file(tensors, path)
    memory = name.replace("language_model.lm_head", "lm_head")
    with pytest.raises(CheckpointError, match=rf"do not fit its config.json: 1 missing: {memory};"):
        verify_checkpoints(*pair, image_token_id=IMAGE_TOKEN)


def test_a_tied_head_that_differs_is_told(make_pair):
    """Stock transformers would load the embedding in its place."""
    source, native = make_pair()
    edit_config(native, lambda fields: fields.update(tie_word_embeddings=True))
    with pytest.raises(CheckpointError, match=r"ties the head to the embedding, but their weigh"):
        verify_checkpoints(source, native)


def test_unknown_image_token(make_original, tmp_path):
    source = make_original(tmp_path / "source")
    with pytest.raises(CheckpointError, match=r"source: has no tokenizer, so its image token"):
        verify_checkpoints(source, source)


def test_a_nan_is_never_within():
    assert not Difference(math.nan, 1.0, 1.0, 1).is_within
    assert Difference(1.0, 1.0, 1.0, 1).is_within
    assert not Difference(1.1, 1.0, 1.0, 1).is_within


def test_a_nan_in_the_first_probe_is_not_lost_in_the_second(make_pair):
    source, native = make_pair()
    edit_tensors(native, spoil)
    found = compare(open_side(source, IMAGE_TOKEN), open_side(native, None))
    assert math.isnan(found.largest)
    assert "nan" in str(found)
