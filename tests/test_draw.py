"""Drawing what a record says where it says it."""

from pathlib import Path

from PIL import Image

from adapt.draw import BOX_COLOUR, POINT_COLOUR, draw_record
from adapt.records import Message, RecordLine, Source


def test_boxes_and_points_stand_at_their_pixels(tmp_path: Path) -> None:
    Image.new("RGB", (400, 200)).save(tmp_path / "a.png")
    record = RecordLine(
        id="a/train/0",
        image=["a.png"],
        width_list=[400],
        height_list=[200],
        conversations=[
            Message("human", "<image>\nWhere is <c1,CAM_FRONT,[500, 500]>?"),
            Message("gpt", "<box>[[100, 200, 300, 600]]</box>"),
        ],
        task="grounding",
        source=Source("a", "train", "0"),
        extra="",
    )
    drawn = draw_record(record, tmp_path)
    assert drawn.getpixel((40, 80)) == BOX_COLOUR
    assert drawn.getpixel((120, 120)) == BOX_COLOUR
    assert drawn.getpixel((206, 100)) == POINT_COLOUR
    assert drawn.getpixel((80, 80)) == (0, 0, 0)
