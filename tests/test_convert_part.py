"""Taking the first units of what a converter yields."""

from adapt.convert_part import first_units
from adapt.records import NotInSplit, Skip


def test_many_units_lost_at_once_are_cut_at_the_limit() -> None:
    results = [Skip("a", "lost", "", 4), NotInSplit("b", 3), Skip("c", "lost", "", 5)]
    assert list(first_units(results, 9)) == [*results[:2], Skip("c", "lost", "", 2)]
    assert list(first_units(results, 7)) == results[:2]
    assert list(first_units(results, 5)) == [results[0], NotInSplit("b", 1)]
    assert list(first_units(results, 2)) == [Skip("a", "lost", "", 2)]
