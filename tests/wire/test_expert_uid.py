from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.errors import InvalidUID
from hivemind_p2p.wire import msgpack
from hivemind_p2p.wire.expert_uid import (
    FLAT_EXPERT,
    UIDGrid,
    check_prefix,
    check_uid,
    grid_entries,
    is_valid_prefix,
    is_valid_uid,
    split_uid,
)

uids = st.builds(
    lambda name, axes: ".".join([name, *map(str, axes)]),
    st.text(st.characters(exclude_characters=".", exclude_categories=["Cs"]), min_size=1, max_size=20),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=5),
)


@pytest.mark.parametrize("uid", ["ffn.0", "ffn.3.7", "a b.10.0.5", "é.1", "ffn-1_x.98.76.54", "3.4"])
def test_uids(uid):
    assert is_valid_uid(uid)
    assert check_uid(uid) == uid


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ffn",
        "ffn.",
        ".0",
        "ffn.01",
        "ffn.-1",
        "ffn.3.",
        "ffn..3",
        "ffn.x",
        "ffn.3\n",
        "ffn.٣",
        "f" + ".1" * 300,
        "ffn.1" + "0" * 19,
    ],
)
def test_what_is_no_uid(text):
    assert not is_valid_uid(text)
    with pytest.raises(InvalidUID, match=r"like ffn\.3\.7") as caught:
        check_uid(text)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [None, 3, b"ffn.0", ["ffn.0"]])
def test_what_is_no_text_is_no_uid(value):
    with pytest.raises(InvalidUID):
        check_uid(value)
    with pytest.raises(InvalidUID):
        check_prefix(value)


def test_prefixes():
    assert is_valid_prefix("ffn.")
    assert check_prefix("ffn.45.0.") == "ffn.45.0."
    for text in ["ffn", "ffn.3", ".", "ffn.03.", "ffn.-1.", "ffn.1" + "0" * 19 + "."]:
        assert not is_valid_prefix(text)
        with pytest.raises(InvalidUID, match="ends with a dot"):
            check_prefix(text)


def test_split():
    assert split_uid("ffn.3.7") == split_uid("ffn.3.7.") == ("ffn.3.", 7)
    assert split_uid("ffn.5.-1") == ("ffn.5.", FLAT_EXPERT)
    for text in ["ffn", "ffn.", "", "ffn.x"]:
        with pytest.raises(InvalidUID):
            split_uid(text)


def test_where_an_expert_is_listed():
    assert list(grid_entries("a.3.7")) == [("a.3.", 7), ("a.", 3)]
    assert list(grid_entries("a.1.2.3")) == [("a.1.2.", 3), ("a.1.", 2), ("a.", 1)]
    assert list(grid_entries("a.5")) == [("a.5.", FLAT_EXPERT), ("a.", 5)]
    with pytest.raises(InvalidUID):
        list(grid_entries("a."))


@given(uids)
def test_following_the_listed_coordinates_from_the_name_leads_to_the_expert(uid):
    entries = list(grid_entries(uid))
    assert all(is_valid_prefix(prefix) for prefix, _ in entries)
    for (longer, _), (shorter, coordinate) in itertools.pairwise(entries):
        assert longer == f"{shorter}{coordinate}."
    prefix, coordinate = entries[0]
    assert uid == (prefix.rstrip(".") if coordinate == FLAT_EXPERT else f"{prefix}{coordinate}")
    assert entries[-1][0] == f"{uid.partition('.')[0]}."


def test_a_grid_counts_its_uids_row_by_row():
    grid = UIDGrid.parse("ffn.[0:2].7.[3:6]")
    assert len(grid) == 6
    assert [grid[index] for index in range(6)] == [
        "ffn.0.7.3", "ffn.0.7.4", "ffn.0.7.5", "ffn.1.7.3", "ffn.1.7.4", "ffn.1.7.5",
    ]  # fmt: skip
    assert list(UIDGrid.parse("one.3")) == ["one.3"]
    with pytest.raises(IndexError, match="grid of 6"):
        grid[6]


@pytest.mark.parametrize(
    "pattern",
    ["", "ffn", "ffn.[0:0]", "ffn.[5:2]", "ffn.[-1:4]", "ffn.[:4]", "ffn.[0-4]", "ffn.x[0:4]", "ffn.[0:4", "f.03"],
)
def test_patterns_that_make_no_uids(pattern):
    with pytest.raises(InvalidUID, match=r"\[0:16\]"):
        UIDGrid.parse(pattern)


def test_every_coordinate_of_a_uid_fits_into_the_dht():
    uid = "ffn.0." + "9" * 19
    assert is_valid_uid(uid)
    assert is_valid_prefix(uid + ".")
    for _, coordinate in grid_entries(uid):
        assert msgpack.loads(msgpack.dumps(coordinate)) == coordinate
