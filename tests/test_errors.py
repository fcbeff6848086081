"""The sentences that errors share."""

from adapt.errors import nearest


def test_nearest_lists_a_few_of_many_names() -> None:
    assert nearest("drivlem", ["llava", "drivelm"]) == " (did you mean drivelm?)"
    assert nearest("x", ["llava", "drivelm"]) == " (known: drivelm, llava)"
    assert nearest("x", []) == " (known: none)"
    names = [f"name{number:02}" for number in range(14)]
    assert nearest("x", names) == f" (known: {', '.join(names[:12])} and 2 more)"
