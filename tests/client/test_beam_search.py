"""The search against brute force, over grids that are dense, sparse, listed at their root, or not."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemind_p2p.client.beam_search import BeamSearch, Choice, ExpertInfo
from hivemind_p2p.wire.expert_uid import FLAT_EXPERT, grid_entries
from hivemind_p2p.wire.peer_id import PeerID

PEER = PeerID(b"\x00\x24\x08\x01\x12\x20" + bytes(32))


class Listings(dict):
    """What declared experts leave in the DHT; notes what was looked up, in rounds."""

    def __init__(self, uids, *, root: bool) -> None:
        super().__init__()
        self.rounds: list[list[str]] = []
        for uid in uids:
            for prefix, coordinate in grid_entries(uid):
                if root or prefix.count(".") > 1:
                    self.setdefault(prefix, {})[coordinate] = ExpertInfo(uid, PEER)

    def run(self, search: BeamSearch) -> Choice:
        while wanted := search.wanted():
            assert len(set(wanted)) == len(wanted)
            self.rounds.append(wanted)
            search.feed({prefix: self[prefix] for prefix in wanted if prefix in self})
        return search.result()


def coordinates_of(uid: str) -> list[int]:
    return [int(part) for part in uid.split(".")[1:]]


def score_of(uid: str, scores, sample: int) -> float:
    return sum(axis[sample, at].item() for axis, at in zip(scores, coordinates_of(uid), strict=True))


def check(choice: Choice, scores, expected_scores) -> None:
    """The chosen ones are consistent, distinct, best first, and have the expected scores."""
    assert choice.coordinates.tolist() == [coordinates_of(info.uid) for info in choice.experts]
    assert len({info.uid for info in choice.experts}) == len(choice.experts)
    assert set(choice.index.unique().tolist()) - {-1} == set(range(len(choice.experts)))
    for sample, row in enumerate(choice.index.tolist()):
        found = [choice.experts[place].uid for place in row if place >= 0]
        assert row == [place for place in row if place >= 0] + [-1] * row.count(-1)
        assert len(set(found)) == len(found)
        got = [score_of(uid, scores, sample) for uid in found]
        assert got == pytest.approx(expected_scores(sample))


def brute_force(uids, scores, k):
    return lambda sample: sorted((score_of(uid, scores, sample) for uid in uids), reverse=True)[:k]


@st.composite
def grids(draw, *, dense: bool):
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    everyone = [()]
    for size in sizes:
        everyone = [(*uid, at) for uid in everyone for at in range(size)]
    alive = everyone if dense else draw(st.lists(st.sampled_from(everyone), unique=True))
    samples = draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    scores = [torch.randn(samples, size, generator=generator) for size in sizes]
    return [".".join(("ffn", *map(str, uid))) for uid in alive], scores


@given(grids(dense=True), st.integers(1, 6), st.booleans())
@settings(deadline=None)
def test_in_a_full_grid_it_finds_what_brute_force_finds(grid, k, root) -> None:
    uids, scores = grid
    check(Listings(uids, root=root).run(BeamSearch("ffn.", scores, k)), scores, brute_force(uids, scores, k))


@given(grids(dense=False), st.integers(1, 6), st.booleans())
@settings(deadline=None)
def test_in_a_sparse_grid_a_beam_that_holds_everything_finds_what_brute_force_finds(grid, k, root) -> None:
    uids, scores = grid
    search = BeamSearch("ffn.", scores, k, beam_size=125)
    check(Listings(uids, root=root).run(search), scores, brute_force(uids, scores, k))


@given(grids(dense=False), st.integers(1, 6), st.booleans())
@settings(deadline=None)
def test_in_a_sparse_grid_it_finds_what_a_beam_search_sample_by_sample_finds(grid, k, root) -> None:
    uids, scores = grid

    def one_by_one(sample: int) -> list[float]:
        beams = [((), 0.0)]
        for axis, values in enumerate(scores):
            alive = {tuple(coordinates_of(uid)[: axis + 1]) for uid in uids}
            longer = [((*beam, at), s + v) for beam, s in beams for at, v in enumerate(values[sample].tolist())]
            beams = sorted((each for each in longer if each[0] in alive), key=lambda each: -each[1])[:k]
        return [s for _, s in beams]

    check(Listings(uids, root=root).run(BeamSearch("ffn.", scores, k)), scores, one_by_one)


def test_all_samples_share_one_look_up_of_each_prefix() -> None:
    uids = [f"ffn.{i}.{j}.{k}" for i in range(8) for j in range(8) for k in range(8)]
    listings = Listings(uids, root=True)
    listings.run(BeamSearch("ffn.", [torch.randn(500, 8) for _ in range(3)], 4))
    assert max(Counter(prefix for wanted in listings.rounds for prefix in wanted).values()) == 1
    assert len(listings.rounds) == 3, "the list of the first axis, the first axis, the second"


def test_a_grid_that_lists_its_first_axis_is_not_probed_at_random() -> None:
    scores = [torch.linspace(1, 0, 4096)[None]]
    listings = Listings(["ffn.4000", "ffn.4095"], root=True)
    choice = listings.run(BeamSearch("ffn.", scores, 2))
    assert [choice.experts[at].uid for at in choice.index[0]] == ["ffn.4000", "ffn.4095"]
    assert sum(map(len, listings.rounds)) == 3, "the list, and one attempt at the best two"


def test_a_grid_that_does_not_is_probed_in_rounds_that_double() -> None:
    scores = [torch.linspace(1, 0, 4096)[None]]
    listings = Listings(["ffn.4000"], root=False)
    choice = listings.run(BeamSearch("ffn.", scores, 2))
    assert [choice.experts[at].uid for at in choice.index[0] if at >= 0] == ["ffn.4000"]
    assert len(listings.rounds) < 15


def test_experts_that_the_list_leaves_out_are_found_beside_those_in_it() -> None:
    """hivemind's servers do not list the first axis; ours do."""
    listings = Listings(["ffn.3.1"], root=True)
    listings.update(Listings(["ffn.2.0"], root=False))
    scores = [torch.tensor([[0.0, 0.0, 9.0, 1.0]]), torch.zeros(1, 2)]
    choice = listings.run(BeamSearch("ffn.", scores, 2))
    assert [choice.experts[at].uid for at in choice.index[0]] == ["ffn.2.0", "ffn.3.1"]


def test_doubtful_coordinates_are_tried_up_to_a_limit_those_first_that_most_samples_want() -> None:
    scores = [torch.zeros(10, 100), torch.zeros(10, 2)]
    scores[0][:, 5] = 9.0
    scores[0][torch.arange(10), torch.arange(10, 20)] = 8.0
    listings = Listings(["ffn.99.0"], root=True)
    choice = listings.run(BeamSearch("ffn.", scores, 2, doubtful_limit=1))
    assert listings.rounds[1] == ["ffn.5."]
    assert [info.uid for info in choice.experts] == ["ffn.99.0"]


@pytest.mark.parametrize(
    "garbage",
    [
        {"ffn.": {7: ExpertInfo("ffn.7", PEER), -3: ExpertInfo("ffn.1", PEER), 2**70: ExpertInfo("ffn.1", PEER)}},
        {"ffn.": {0: ExpertInfo("ffn.1", PEER)}},
        {"ffn.0.": {FLAT_EXPERT: ExpertInfo("other.0", PEER)}},
        {"ffn.0.": {3: ExpertInfo("ffn.0.3", PEER)}},
    ],
)
def test_listings_that_lie_lead_nowhere(garbage) -> None:
    choice = Listings([], root=True) | garbage
    search = BeamSearch("ffn.", [torch.zeros(1, 2)], 2)
    while wanted := search.wanted():
        search.feed({prefix: choice[prefix] for prefix in wanted if prefix in choice})
    assert search.result().index.tolist() == [[-1, -1]]


def test_an_expert_of_another_place_of_the_grid_is_not_taken_for_this_one() -> None:
    listings = Listings(["ffn.0.1"], root=True)
    listings["ffn.0."] = {0: ExpertInfo("ffn.0.1", PEER), 1: ExpertInfo("ffn.0.1", PEER)}
    choice = listings.run(BeamSearch("ffn.", [torch.zeros(1, 2), torch.zeros(1, 2)], 2))
    assert [info.uid for info in choice.experts] == ["ffn.0.1"]
    assert choice.coordinates.tolist() == [[0, 1]]


def test_scores_that_are_minus_infinity_or_nan_are_never_chosen() -> None:
    scores = [torch.tensor([[1.0, -torch.inf, torch.nan, 0.0]])]
    listings = Listings([f"ffn.{at}" for at in range(4)], root=True)
    choice = listings.run(BeamSearch("ffn.", scores, 4))
    assert choice.coordinates[choice.index[0, :2]].flatten().tolist() == [0, 3]
    assert choice.index[0, 2:].tolist() == [-1, -1]


def test_a_batch_without_samples_wants_nothing() -> None:
    choice = Listings([], root=True).run(BeamSearch("ffn.", [torch.zeros(0, 4), torch.zeros(0, 4)], 2))
    assert choice.experts == []
    assert choice.index.shape[0] == 0
    assert choice.coordinates.shape == (0, 2)


def test_a_result_that_is_not_there_yet_says_so() -> None:
    with pytest.raises(RuntimeError, match="not over"):
        BeamSearch("ffn.", [torch.zeros(1, 2)], 1).result()
