from __future__ import annotations

from collections import namedtuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.wire.nested import MAX_NESTING, nested_compare, nested_flatten, nested_map, nested_pack

Point = namedtuple("Point", "x y")

structures = st.recursive(
    st.integers() | st.none() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(), inner)
        | st.lists(inner).map(tuple)
        | st.tuples(inner, inner).map(Point._make)
    ),
    max_leaves=20,
)


@given(structures)
def test_packing_is_the_inverse_of_flattening(structure: object):
    packed = nested_pack(nested_flatten(structure), structure)
    assert packed == structure
    assert type(packed) is type(structure)
    assert nested_compare(packed, structure)


def test_dictionaries_come_in_the_order_of_their_keys():
    assert list(nested_flatten({"b": 1, "a": [2, (3, {"z": 4, "y": 5})]})) == [2, 3, 5, 4, 1]
    assert list(nested_pack("xyzvw", {"b": 1, "a": [2, (3, {"z": 4, "y": 5})]})) == ["a", "b"]


def test_named_tuples_stay_named():
    assert nested_map(lambda value: value + 1, [Point(1, (2, 3))]) == [Point(2, (3, 4))]


def test_several_structures_are_mapped_together():
    assert nested_map(lambda one, other: one * other, {"a": 2, "b": [3]}, {"b": [5], "a": 4}) == {"a": 8, "b": [15]}
    with pytest.raises(ValueError, match="differ"):
        nested_map(max, [1, 2], [1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1], (1,)),
        ([1], [1, 2]),
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": 1, "b": 1}),
        ({"a": 1}, [1]),
        (1, [1]),
        (1, {}),
        ([[]], [1]),
    ],
)
def test_structures_that_differ(one: object, other: object):
    assert not nested_compare(one, other)
    assert not nested_compare(other, one)


@pytest.mark.parametrize(("leaves", "words"), [([1], "fewer"), ([1, 2, 3], "more"), ([], "fewer")])
def test_the_wrong_number_of_leaves_is_refused(leaves: list, words: str):
    with pytest.raises(ValueError, match=f"{words} leaves"):
        nested_pack(leaves, {"a": 0, "b": [0]})


def test_depth_is_bounded():
    deep: object = 1
    for _ in range(MAX_NESTING):
        deep = [deep]
    assert list(nested_flatten(deep)) == [1]
    for deeper in ([deep], {"a": deep}, (deep,)):
        with pytest.raises(ValueError, match="deep"):
            list(nested_flatten(deeper))
        with pytest.raises(ValueError, match="deep"):
            nested_pack([1], deeper)
        with pytest.raises(ValueError, match="deep"):
            nested_compare(deeper, deeper)
