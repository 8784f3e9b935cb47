"""A name is suggested where it may have been meant, and no other."""

import pytest

from runtime.near_names import near_name


@pytest.mark.parametrize(
    ("name", "known", "near"),
    [
        ("lable", ["label", "day"], "label"),
        ("Label", ["label"], "label"),
        ("C14", ["C13", "day"], "C13"),
        ("user_id", ["userid", "item_id"], "userid"),
        ("min_cuont", ["max_elements", "min_count"], "min_count"),
        ("price", ["age", "label", "prior"], None),
        ("user", ["item", "tags"], None),
        ("x", ["y"], None),
        ("X", ["x"], "x"),
        ("", ["x"], None),
        ("x", [], None),
    ],
)
def test_a_name_is_near_in_all_but_a_third_of_its_letters(
    name: str, known: list[str], near: str | None
) -> None:
    assert near_name(name, known) == near
