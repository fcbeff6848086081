"""config.json between the two layouts."""

import pytest

from adapt.errors import CheckpointError
from adapt.models.checkpoint_config import is_same_setting, native_config
from adapt.models.config_maps import TEXT_SAME, VISION_NAMES
from adapt.models.known_layouts import layout_of_native, layout_of_original
from adapt.models.presets import load_preset, preset_names

KINDS = ("qwen2", "internlm2", "phi3", "mono")
IMAGE_TOKEN = 5


def import_config(fields, image_token_id=IMAGE_TOKEN):
    return layout_of_original(fields).import_config(fields, image_token_id)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_and_head(original_fields, kind):
    config = import_config(original_fields(kind))
    text, vision = config.text_config, config.vision_config
    sizes = {name: getattr(text, name) for name in TEXT_SAME}
    assert sizes == {
        "vocab_size": 96,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if kind == "phi3" else 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5 if kind == "phi3" else 1e-6,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    assert config.tie_word_embeddings is False
    assert config.image_token_id == IMAGE_TOKEN
    assert config.image_seq_length == 4
    assert list(vision.image_size) == [56, 56]
    assert list(vision.patch_size) == [14, 14]
    assert (vision.attention_bias, vision.use_qk_norm, vision.norm_type) == (
        True,
        False,
        "layer_norm",
    )
    # Reference: the last hidden state goes to the projector without another norm.
    assert vision.use_mean_pooling is True


def test_rope_of_each_language_model(original_fields):
    ropes = {
        kind: import_config(original_fields(kind)).text_config.rope_parameters for kind in KINDS
    }
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    assert ropes == {
        "qwen2": {"rope_type": "default", "rope_theta": 10000.0},
        "internlm2": dynamic,
        "mono": dynamic,
        "phi3": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0, 1.1],
            "long_factor": [1.5, 4.0],
            "original_max_position_embeddings": 32,
            "factor": 2.0,
            "partial_rotary_factor": 1.0,
        },
    }


def test_a_window_wider_than_every_position_is_none(original_fields):
    wide = import_config(original_fields("phi3"))
    narrow = import_config(original_fields("phi3", {"sliding_window": 8}))
    assert (wide.text_config.sliding_window, narrow.text_config.sliding_window) == (None, 8)


def test_absent_keys_have_the_defaults_of_the_original_classes(original_fields):
    fields = original_fields("internlm2")
    for name in ("bias", "num_key_value_heads", "max_position_embeddings", "rope_scaling"):
        del fields["llm_config"][name]
    for name in ("qkv_bias", "qk_normalization", "norm_type"):
        del fields["vision_config"][name]
    config = import_config(fields)
    text, vision = config.text_config, config.vision_config
    assert text.attention_bias is True
    assert (text.num_key_value_heads, text.max_position_embeddings) == (4, 2048)
    assert text.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert (vision.attention_bias, vision.use_qk_norm, vision.norm_type) == (
        False,
        True,
        "rms_norm",
    )


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_survives_the_way_out_and_back(name):
    config = load_preset(name).config(7)
    fields = layout_of_native(config.to_dict()).export_config(config)
    back = import_config(fields, 7)
    assert type(back) is type(config)
    assert back.image_seq_length == config.image_seq_length
    for section, names in (
        ("text_config", (*TEXT_SAME, "rope_parameters")),
        ("vision_config", VISION_NAMES.values()),
    ):
        for setting in names:
            before = getattr(getattr(config, section), setting)
            after = getattr(getattr(back, section), setting)
            assert is_same_setting(before, after), (section, setting, before, after)


def change(path, value):
    def apply(fields):
        *sections, name = path.split(".")
        for section in sections:
            fields = fields[section]
        if value is ...:
            del fields[name]
        else:
            fields[name] = value

    return apply


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model_type", "llama", "model_type is llama, expected internvl_chat .*another model"),
        ("model_type", "internvl", "the checkpoint is native already"),
        ("llm_config", ..., "has no llm_config"),
        ("vision_config", [], "has no vision_config"),
        ("llm_config.architectures", ["Qwen2ForCausaLM"], r"did you mean Qwen2ForCausalLM\?"),
        ("llm_config.architectures", [], "the language model is None"),
        ("ps_version", "v1", "ps_version is v1, expected v2"),
        ("llm_config.hidden_size", "16", "llm_config.hidden_size is '16', expected a positive"),
        ("llm_config.vocab_size", 0, "llm_config.vocab_size is 0, expected a positive integer"),
        ("vision_config.patch_size", 14.0, "vision_config.patch_size is 14.0, expected a pos"),
        ("llm_config.num_attention_heads", 3, "hidden_size is 16, not a multiple of num_attent"),
        ("llm_config.num_key_value_heads", 3, "num_attention_heads is 4, not a multiple of num_k"),
        ("vision_config.num_attention_heads", 3, "vision_config.hidden_size is 8, not a multiple"),
        ("llm_config.rope_scaling", {"type": "yarn"}, "rope_scaling has type yarn, expected dyna"),
        ("llm_config.rope_scaling", "fast", "rope_scaling has type fast"),
        ("llm_config.rope_scaling", {"type": "dynamic"}, "transformers refuses it: .*factor"),
        ("llm_config.rope_pos_id_version", "v2pe_fix", "rope_pos_id_version is v2pe_fix, expected"),
        ("llm_config.rope_scaling", "dynamic", "rope_scaling has type dynamic, expected"),
        ("llm_config.rope_theta", None, "rope_theta is None, expected a positive number"),
        ("llm_config.rope_theta", 0, "rope_theta is 0, expected a positive number"),
        ("llm_config.pad_token_id", 96, "pad_token_id is 96, outside the vocabulary of 96"),
        ("llm_config.pad_token_id", -1, "pad_token_id is -1, outside the vocabulary of 96"),
        ("llm_config.num_hidden_layers", 10**12, "num_hidden_layers is 1000000000000, expected"),
        ("vision_config.num_hidden_layers", 1001, "num_hidden_layers is 1001, expected at most"),
        ("downsample_ratio", None, "downsample_ratio is None, expected a number up to 1"),
        ("downsample_ratio", 0.0, "downsample_ratio is 0.0, expected a number up to 1"),
        ("downsample_ratio", 0.1, "image_seq_length is 0, but a tile of 4x4 patches"),
        ("force_image_size", 28, "force_image_size is 28, but vision_config.image_size is 56"),
        ("force_image_size", "x", "force_image_size is 'x', but vision_config.image_size is 56"),
        ("select_layer", 0, r"select_layer \(vision_feature_layer\) is 0, expected -1"),
        (
            "select_layer",
            -4,
            r"is -4, expected -1 \(the last\), or another of the vision tower's 2",
        ),
        ("select_layer", [1, 2], r"select_layer \(vision_feature_layer\) is \[1, 2\], expected -1"),
        ("llm_config.vocab_size", 5, "image token id 5 is outside the vocabulary of 5"),
    ],
)
def test_configs_of_other_models(original_fields, path, value, message):
    fields = original_fields("internlm2")
    change(path, value)(fields)
    with pytest.raises(CheckpointError, match=message) as caught:
        import_config(fields)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "internvl_chat"}, "original layout, expected a native checkpoint"),
        ({"model_type": "llava", "text_config": {"model_type": "llama"}}, "another model"),
        ({"model_type": "internvl", "text_config": {"model_type": "gemma"}}, "gemma language"),
        ({"model_type": "internvl"}, "None language model"),
        ({"model_type": "internvl", "text_config": "x"}, "None language model"),
    ],
)
def test_native_configs_of_other_models(fields, message):
    with pytest.raises(CheckpointError, match=message):
        layout_of_native(fields)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("llm_config.original_max_position_embeddings", None, "_embeddings is None, expected a po"),
        ("llm_config.original_max_position_embeddings", 0, "_embeddings is 0, expected a positive"),
        ("llm_config.sliding_window", "x", "sliding_window is 'x', expected a positive integer"),
    ],
)
def test_phi3_positions_that_are_no_numbers(original_fields, path, value, message):
    fields = original_fields("phi3")
    change(path, value)(fields)
    with pytest.raises(CheckpointError, match=message):
        import_config(fields)


def test_phi3_switch_has_the_default_of_the_original_class(original_fields):
    fields = original_fields("phi3", {"max_position_embeddings": 131072})
    del fields["llm_config"]["original_max_position_embeddings"]
    assert import_config(fields).text_config.rope_parameters == {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1],
        "long_factor": [1.5, 4.0],
        "original_max_position_embeddings": 4096,
        "factor": 32.0,
        "partial_rotary_factor": 1.0,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_token_id": 96}, "image token id 96 is outside the vocabulary of 96"),
        ({"image_seq_length": 7}, "image_seq_length is 7, but a tile of 4x4 patches with downsamp"),
        ({"vision_feature_layer": [1, 2]}, r"is \[1, 2\], expected -1 \(the last\)"),
        ({"dtype": "nope"}, "transformers refuses it: .*nope"),
    ],
)
def test_native_configs_that_contradict_themselves(original_fields, changes, message):
    fields = import_config(original_fields("internlm2")).to_dict()
    assert native_config(fields).image_seq_length == 4
    with pytest.raises(CheckpointError, match=message):
        native_config(fields | changes)


def test_qwen2_with_a_scaled_rope_is_refused(original_fields):
    fields = original_fields("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0}})
    with pytest.raises(
        CheckpointError, match="type yarn, expected dynamic with this language model"
    ):
        import_config(fields)


def test_rope_without_a_word_for_it_is_not_exported():
    config = load_preset("mini-internvl2-2b").config(7)
    config.text_config.rope_parameters = {"rope_type": "llama3", "rope_theta": 1.0, "factor": 8.0}
    with pytest.raises(CheckpointError, match="rope_type llama3, which the original layout"):
        layout_of_native(config.to_dict()).export_config(config)
