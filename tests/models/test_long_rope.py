"""Phi-3's long rope in packs: transformers chooses short or long factors once for a whole row.

The choice is `max(position_ids) + 1 > original_max_position_embeddings`, over all records of the
row. So a pack of short records is what each of them is alone, and so is a pack of long ones; a
pack of both turns the short ones with the long factors.
"""

import pytest
import torch
from transformers import InternVLForConditionalGeneration

from adapt.models.config_maps import with_defaults
from adapt.models.importing import import_checkpoint
from adapt.models.original_forward import OriginalForward
from adapt.models.shards import open_checkpoint

IMAGE_TOKEN = 5
SWITCH = 32


@pytest.fixture(scope="module")
def folders(make_original, tmp_path_factory):
    home = tmp_path_factory.mktemp("phi3")
    source = make_original(home / "source", "phi3")
    import_checkpoint(source, home / "native", image_token_id=IMAGE_TOKEN)
    return source, home / "native"


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(folders, request):
    model = InternVLForConditionalGeneration.from_pretrained(folders[1])
    model.set_attn_implementation(request.param)
    return model.eval()


def record(tokens, seed, picture=True):
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(6, 96, (tokens,), generator=random)
    if picture:
        ids[2:6] = IMAGE_TOKEN
    return ids, torch.randn(1, 3, 56, 56, generator=random) if picture else None


@torch.no_grad()
def logits(model, records):
    """Return the logits of records packed into one row, split again."""
    ids = torch.cat([ids for ids, _ in records])
    positions = torch.cat([torch.arange(len(ids)) for ids, _ in records])
    pictures = [tiles for _, tiles in records if tiles is not None]
    row = model(
        input_ids=ids[None],
        position_ids=positions[None],
        pixel_values=torch.cat(pictures) if pictures else None,
        attention_mask=None,
        use_cache=False,
    ).logits[0]
    return row.split([len(ids) for ids, _ in records])


def largest(packed, alone):
    return max((one - other).abs().max().item() for one, other in zip(packed, alone, strict=True))


@pytest.mark.parametrize(
    "lengths",
    [(12, 9, 20), (SWITCH, SWITCH, 7), (SWITCH + 1, 50), (64, 40)],
    ids=["short", "up to the switch", "long", "longest"],
)
def test_pack_of_one_kind_is_each_record_alone(model, lengths):
    records = [record(length, seed) for seed, length in enumerate(lengths)]
    # More tokens in the row than the switch: the row's length does not count, positions do.
    assert sum(lengths) > SWITCH
    alone = [logits(model, [one])[0] for one in records]
    assert largest(logits(model, records), alone) < 1e-4


def test_pack_of_both_kinds_turns_the_short_with_the_long_factors(model):
    short, long = record(20, 1), record(50, 2)
    alone = [logits(model, [one])[0] for one in (short, long)]
    packed = logits(model, [short, long])
    assert (packed[1] - alone[1]).abs().max() < 1e-4
    assert (packed[0] - alone[0]).abs().max() > 0.05


def test_the_choice_does_not_depend_on_what_ran_before(model):
    short, long = record(20, 1), record(50, 2)
    first = logits(model, [short])[0]
    logits(model, [long])
    assert logits(model, [short])[0].equal(first)


@pytest.mark.parametrize("tokens", [SWITCH - 1, SWITCH, SWITCH + 1, 64])
def test_factors_are_those_of_the_original(folders, model, tokens):
    source, _ = folders
    checkpoint = open_checkpoint(source)
    from adapt.models.checkpoint_config import read_config

    forward = OriginalForward(checkpoint, with_defaults(read_config(source)), IMAGE_TOKEN)
    ids, tiles = record(tokens, 3)
    wanted = forward.logits(ids, torch.arange(tokens), tiles)
    torch.testing.assert_close(logits(model, [(ids, tiles)])[0], wanted, atol=1e-4, rtol=0)
