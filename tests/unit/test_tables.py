"""Tables as commands print them."""

from preheat.tables import table


def test_columns_are_as_wide_as_their_widest_cell_and_nothing_trails() -> None:
    rows = [("MODEL", "N", "WHY"), ("a", "1000", ""), ("longest", "1", "so")]
    assert table(rows) == ["MODEL    N     WHY", "a        1000", "longest  1     so"]
