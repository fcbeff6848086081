"""`adapt.json`: written, read, and refused when it is not what it should be."""

from pathlib import Path

import pytest

from adapt.errors import CheckpointError
from adapt.models.card import Card, read_card, write_card

CARD = Card(template="Hermes-2", tile_px=448, tokens_per_tile=256, preset="mini-internvl2-1b")


def test_a_card_comes_back(tmp_path: Path) -> None:
    assert read_card(tmp_path) is None
    write_card(tmp_path, CARD)
    assert read_card(tmp_path) == CARD


def test_unknown_keys_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "adapt.json"
    path.write_text(
        '{"format": 1, "template": "Hermes-2", "tile_px": 448, "tokens_per_tile": 256, "by": "x"}'
    )
    assert read_card(tmp_path) == Card(template="Hermes-2", tile_px=448, tokens_per_tile=256)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"template": 3}', r"adapt\.json: Expected `str`, got `int`"),
        ('{"template": "x"}', r"adapt\.json: Object missing required field `tile_px`"),
        ('{"template"', r"adapt\.json: Input data was truncated"),
        ("[]", r"adapt\.json: Expected `object`, got `array`"),
    ],
)
def test_a_damaged_card(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "adapt.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_card(tmp_path)


def test_a_card_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "adapt.json").write_bytes(b'{"template": "\xff"}')
    with pytest.raises(CheckpointError, match=r"adapt\.json: 'utf-8' codec can't decode"):
        read_card(tmp_path)


def test_a_later_format(tmp_path: Path) -> None:
    write_card(tmp_path, Card(template="x", tile_px=1, tokens_per_tile=1, format=2))
    with pytest.raises(CheckpointError) as caught:
        read_card(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/adapt.json: format 2, expected 1; update adapt, or import again"
    )
