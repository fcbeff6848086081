"""Raw files found by name, and large JSON read from its places."""

from pathlib import Path

import msgspec
import pytest

from adapt.converters._raw import MappedJson, Slice, find_file
from adapt.errors import SourceError


def test_the_preferred_name_and_the_nearest_folder_win(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "x.json").touch()
    assert find_file(tmp_path, ("x.json", "*.json")) == deep / "x.json"
    (tmp_path / "y.json").touch()
    assert find_file(tmp_path, ("x.json", "*.json")) == deep / "x.json"
    (tmp_path / "a" / "x.json").touch()
    assert find_file(tmp_path, ("x.json", "*.json")) == tmp_path / "a" / "x.json"
    assert find_file(tmp_path, ("z.json",)) is None


def test_no_deeper_than_two_folders(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "x.json").touch()
    assert find_file(tmp_path, ("x.json",)) is None


def test_two_candidates_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.json").touch()
    with pytest.raises(SourceError, match=r"holds a/x\.json and b/x\.json; expected one x\.json"):
        find_file(tmp_path, ("x.json",))


class TestMappedJson:
    text = ' {"one": [1, "é"], "two": {"Q": 1, "x": "\\"Q\\":"} , "three": 3}\n'

    @pytest.fixture
    def file(self, tmp_path: Path) -> MappedJson:
        path = tmp_path / "a.json"
        path.write_text(self.text)
        return MappedJson(path)

    def test_values_are_read_from_their_places(self, file: MappedJson) -> None:
        values = file.top(dict[str, msgspec.Raw], "an object")
        read = {key: file.place(value).read(file.path) for key, value in values.items()}
        assert {key: msgspec.json.decode(data) for key, data in read.items()} == {
            "one": [1, "é"],
            "two": {"Q": 1, "x": '"Q":'},
            "three": 3,
        }
        assert file.place(values["three"]) == Slice(self.text.encode().index(b"3}"), 1)

    def test_keys_are_counted_but_not_texts(self, file: MappedJson) -> None:
        values = file.top(dict[str, msgspec.Raw], "an object")
        assert file.count(rb'"Q"\s*:') == 1
        assert file.count(rb'"Q"\s*:', values["two"]) == 1
        assert file.count(rb'"Q"\s*:', values["one"]) == 0

    def test_another_shape_says_what_is_expected(self, file: MappedJson) -> None:
        with pytest.raises(SourceError, match=r"a\.json: Expected `array`.*; expected a list"):
            file.top(list[msgspec.Raw], "a list")


def test_a_piece_past_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("12345")
    assert Slice(1, 3).read(path) == b"234"
    with pytest.raises(SourceError, match="ends at byte 5, before it had 9"):
        Slice(3, 6).read(path)
    path.unlink()
    with pytest.raises(SourceError, match="cannot be read"):
        Slice(0, 1).read(path)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").touch()
    with pytest.raises(SourceError, match="the file is empty"):
        MappedJson(tmp_path / "a.json")
