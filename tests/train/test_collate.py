"""Records side by side in a pack."""

import numpy as np
import torch

from adapt.models.chat import UNSUPERVISED
from adapt.train.collate import Filler, LoadedRecord, collate

FILLER = Filler(image_token_id=7, tokens_per_tile=2, tile_px=4)


def record(tokens: list[int], labels: list[int], tiles: int = 0) -> LoadedRecord:
    pixels = np.full((tiles, 3, 4, 4), len(tokens), dtype=np.uint8)
    return LoadedRecord(np.array(tokens), np.array(labels), pixels)


def test_two_records_in_a_row() -> None:
    pack = collate(
        [
            record([7, 7, 11, 12, 13], [UNSUPERVISED, UNSUPERVISED, UNSUPERVISED, 12, 13], tiles=1),
            record([21, 22, 23], [UNSUPERVISED, UNSUPERVISED, 23]),
        ],
        "square",
        FILLER,
    )
    assert pack.input_ids.tolist() == [[7, 7, 11, 12, 13, 21, 22, 23]]
    assert pack.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert pack.tiles.shape == (1, 3, 4, 4)
    assert (pack.tiles == 5).all()
    # The states before 12, 13 and 23; the first record's two tokens weigh 1 / sqrt(2) each.
    assert pack.rows.tolist() == [2, 3, 6]
    assert pack.targets.tolist() == [12, 13, 23]
    torch.testing.assert_close(pack.weights, torch.tensor([2**-0.5, 2**-0.5, 1.0]))


def test_a_record_never_predicts_the_next_ones_first_token() -> None:
    pack = collate([record([1, 2], [UNSUPERVISED, 2]), record([3, 4], [3, 4])], "token", FILLER)
    assert pack.rows.tolist() == [0, 2]
    assert pack.targets.tolist() == [2, 4]


def test_a_pack_of_text_gets_a_filler() -> None:
    pack = collate([record([1, 2], [UNSUPERVISED, 2])], "token", FILLER)
    assert pack.input_ids.tolist() == [[1, 2, 7, 7]]
    assert pack.position_ids.tolist() == [[0, 1, 0, 1]]
    assert pack.targets.tolist() == [2]
    assert pack.tiles.tolist() == np.zeros((1, 3, 4, 4)).tolist()


def test_an_empty_pack_has_a_filler_and_no_weight() -> None:
    pack = collate([], "sample", FILLER)
    assert pack.input_ids.tolist() == [[7, 7]]
    assert (len(pack.rows), len(pack.targets), len(pack.weights)) == (0, 0, 0)
    assert pack.weights.dtype == torch.float32
    assert pack.targets.dtype == torch.int64


def test_names_are_those_the_model_takes() -> None:
    inputs = collate([], "token", FILLER).inputs(torch.device("cpu"))
    assert list(inputs) == ["input_ids", "position_ids", "tiles", "rows", "targets", "weights"]
