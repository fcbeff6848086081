"""Opening models: where they are looked for, what a folder must be, what a handle says."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from adapt.errors import CheckpointError, RecordError
from adapt.models.card import Card, read_card
from adapt.models.handle import ModelHandle, open_model
from adapt.models.presets import load_preset
from adapt.records import Message

ASKED = [Message("human", "<image>\nWhat is it?"), Message("gpt", "A car.")]


@pytest.fixture(scope="module")
def tiny() -> ModelHandle:
    return open_model("tiny")


@pytest.fixture(scope="module")
def native(tiny: ModelHandle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a native checkpoint folder as a training run writes it."""
    folder = tmp_path_factory.mktemp("models") / "trained"
    tiny.load(torch.float32, seed=3).save_pretrained(folder)
    tiny.save_extras(folder)
    return folder


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


class TestTiny:
    """The preset that needs nothing."""

    def test_what_it_says_of_itself(self, tiny: ModelHandle) -> None:
        assert tiny.folder is None
        assert tiny.preset == load_preset("tiny")
        assert (tiny.tile_px, tiny.tokens_per_tile, tiny.vocab_size) == (448, 16, 1536)
        assert (tiny.max_positions, tiny.rope_switch) == (None, None)
        assert tiny.tokenizer.convert_ids_to_tokens(tiny.image_token_id) == "<IMG_CONTEXT>"
        stop = tiny.tokenizer.convert_ids_to_tokens(tiny.stop_token_ids)
        assert stop == ["<|im_end|>", "<|endoftext|>"]

    def test_weights_come_from_the_seed_and_leave_the_generator_alone(
        self, tiny: ModelHandle
    ) -> None:
        state = torch.get_rng_state()
        first, again, other = (tiny.load(torch.float32, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), state)
        for one, same in zip(first.parameters(), again.parameters(), strict=True):
            assert torch.equal(one, same)
        assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
        assert tiny.load(torch.bfloat16).dtype == torch.bfloat16

    def test_it_sees(self, tiny: ModelHandle) -> None:
        model = tiny.load(torch.float32).eval()
        sample = tiny.encode(ASKED, [2])
        ids = torch.tensor([sample.input_ids])
        pictures = torch.rand(2, 3, 448, 448, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            logits = model(input_ids=ids, pixel_values=pictures, use_cache=False).logits
            other = model(input_ids=ids, pixel_values=1 - pictures, use_cache=False).logits
        assert logits.shape == (1, len(sample.input_ids), 1536)
        assert (logits[0, -1] - other[0, -1]).abs().max() > 1e-3


class TestEncoding:
    """Tokens by tiles."""

    def test_a_tile_is_sixteen_tokens(self, tiny: ModelHandle) -> None:
        for tiles in ([1], [13]):
            sample = tiny.encode(ASKED, tiles)
            assert sample.input_ids.count(tiny.image_token_id) == 16 * tiles[0]

    def test_many_are_the_same_as_one_by_one(self, tiny: ModelHandle) -> None:
        records = [(ASKED, [tiles]) for tiles in (1, 4, 2)]
        assert tiny.encode_many(records) == [tiny.encode(*record) for record in records]
        assert tiny.encode_many([]) == []

    def test_a_prompt_ends_where_the_answer_begins(self, tiny: ModelHandle) -> None:
        prompt, sample = tiny.encode_prompt(ASKED, [2]), tiny.encode(ASKED, [2])
        assert sample.input_ids[: len(prompt)] == prompt
        assert set(sample.labels[: len(prompt)]) == {-100}
        assert sample.labels[len(prompt)] == sample.input_ids[len(prompt)]
        assert tiny.encode_prompt(ASKED[:1], [2]) == prompt
        assert tiny.encode_prompt([ASKED[0], Message("gpt", "")], [2]) == prompt

    def test_the_record_at_fault_is_named(self, tiny: ModelHandle) -> None:
        with pytest.raises(RecordError, match=r"^conversation has 1 <image> and 0 pictures"):
            tiny.encode(ASKED, [])
        with pytest.raises(RecordError, match=r"^records\[1\]: conversation has 1 <image> and 2"):
            tiny.encode_many([(ASKED, [1]), (ASKED, [1, 1])])


class TestFolders:
    """Checkpoint and run folders."""

    def test_a_checkpoint_comes_back_as_it_was(self, tiny: ModelHandle, native: Path) -> None:
        handle = open_model(str(native))
        assert handle.folder == native
        assert handle.preset == tiny.preset
        assert handle.template == tiny.template
        assert handle.encode(ASKED, [3]) == tiny.encode(ASKED, [3])
        assert handle.stop_token_ids == tiny.stop_token_ids
        expected = tiny.load(torch.float32, seed=3).state_dict()
        loaded = handle.load(torch.float32).state_dict()
        assert loaded.keys() == expected.keys()
        for name, weight in expected.items():
            assert torch.equal(loaded[name], weight), name
        # Saved once more it is the same again.
        assert read_card(native) == Card(
            template="internvl2_5", tile_px=448, tokens_per_tile=16, preset="tiny"
        )

    def test_the_workspace_comes_before_the_hub(self, native: Path, tmp_path: Path) -> None:
        copy_of(native, tmp_path / "models" / "mini-internvl2-1b")
        by_name = open_model("mini-internvl2-1b", workspace=tmp_path)
        by_hub_id = open_model("OpenGVLab/InternVL2-1B", workspace=tmp_path)
        assert by_name.folder == by_hub_id.folder == tmp_path / "models" / "mini-internvl2-1b"
        # The folder's own word on its template stands above the preset's.
        assert by_name.template.name == "internvl2_5"

    def test_a_folder_that_says_nothing_of_its_template(self, native: Path, tmp_path: Path) -> None:
        folder = copy_of(native, tmp_path / "stock")
        (folder / "adapt.json").unlink()
        handle = open_model(str(folder))
        assert (handle.preset, handle.template.name) == (None, "internvl2_5")

    def test_ropes_with_limits(self, native: Path, tmp_path: Path) -> None:
        folder = copy_of(native, tmp_path / "dynamic")
        text = json.loads((folder / "config.json").read_text())["text_config"]
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}
        edit_config(folder, text_config={**text, "rope_parameters": rope})
        assert open_model(str(folder)).max_positions == 32768
        preset = load_preset("mini-internvl2-4b")
        config = preset.config(5)
        config.save_pretrained(folder)
        handle = open_model(str(folder))
        assert (handle.max_positions, handle.rope_switch) == (None, 4096)


class TestRefusals:
    """One clear line each."""

    def test_a_config_that_contradicts_itself(self, native: Path, tmp_path: Path) -> None:
        folder = copy_of(native, tmp_path / "x")
        text = json.loads((folder / "config.json").read_text())["text_config"]
        edit_config(folder, text_config={**text, "hidden_size": "wide"})
        with pytest.raises(CheckpointError, match=r"x/config\.json: transformers refuses it: "):
            _ = open_model(str(folder)).vocab_size

    def test_a_config_that_is_cut_off(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "inter')
        with pytest.raises(CheckpointError, match=r"config\.json:1:\d+: not valid JSON"):
            open_model(str(tmp_path))

    def test_image_ids_that_differ(self, native: Path, tmp_path: Path) -> None:
        folder = copy_of(native, tmp_path / "x")
        edit_config(folder, image_token_id=9)
        with pytest.raises(CheckpointError, match=r"<IMG_CONTEXT> is 5 in the tokenizer and 9 in"):
            _ = open_model(str(folder)).image_token_id

    def test_a_tokenizer_beyond_the_embedding(self, native: Path, tmp_path: Path) -> None:
        folder = copy_of(native, tmp_path / "x")
        text = json.loads((folder / "config.json").read_text())["text_config"]
        edit_config(folder, text_config={**text, "vocab_size": 1000})
        with pytest.raises(CheckpointError, match=r"x: the tokenizer has ids up to 1535"):
            _ = open_model(str(folder)).tokenizer

    def test_weights_of_other_sizes(self, native: Path, tmp_path: Path) -> None:
        folder = copy_of(native, tmp_path / "x")
        text = json.loads((folder / "config.json").read_text())["text_config"]
        deeper = {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}
        edit_config(folder, text_config={**text, **deeper})
        with pytest.raises(CheckpointError, match=r"weights do not fit config\.json: missing_keys"):
            open_model(str(folder)).load(torch.float32)
        edit_config(folder, text_config={**text, "intermediate_size": 100})
        with pytest.raises(CheckpointError, match=r"x: weights "):
            open_model(str(folder)).load(torch.float32)

    def test_no_weights(self, native: Path, tmp_path: Path) -> None:
        folder = copy_of(native, tmp_path / "x")
        (folder / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"x: weights cannot be loaded: "):
            open_model(str(folder)).load(torch.float32)


def test_weights_that_are_cut_off(native: Path, tmp_path: Path) -> None:
    shutil.copytree(native, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cut: weights cannot be loaded: .*not fully cover"):
        open_model(str(tmp_path / "cut")).load(torch.float32)
