from __future__ import annotations

import random as random_module
from collections import Counter
from collections.abc import Callable, Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from hivemind_p2p.kademlia import SHA1, Contact, Lookup, Request, RoutingTable

OWN = Contact(SHA1.hash(b"own"), "own")
randoms = st.integers(0, 1 << 30).map(random_module.Random)


def node(n: int) -> Contact[str]:
    return Contact(SHA1.hash(b"node %d" % n), f"peer {n}")


class Network:
    """Nodes that know each other as Kademlia nodes do; some are dead."""

    def __init__(self, size: int, random: random_module.Random, *, dead: Iterable[int] = (), width: int = 20) -> None:
        self.nodes = [node(n) for n in range(size)]
        self.alive = {contact for n, contact in enumerate(self.nodes) if n not in set(dead)}
        self.tables = {}
        for contact in self.nodes:
            table = RoutingTable(contact, space=SHA1, bucket_size=width)
            for other in random.sample(self.nodes, size):
                table.heard_from(other, 0.0)
            self.tables[contact] = table
        self.width = width
        self.requests: list[Request[str]] = []

    def nearest(self, target: int) -> list[Contact[str]]:
        return sorted(self.alive, key=lambda contact: contact.node_id ^ target)[: self.width]

    def run(self, lookup: Lookup[str], random: random_module.Random) -> Lookup[str]:
        pending: list[Request[str]] = []
        while not lookup.done:
            new = lookup.next_requests()
            self.requests += new
            pending += new
            assert pending, "nothing in flight, nothing to ask, and yet not done"
            assert len({request.contact.peer for request in pending}) == len(pending) == lookup.in_flight
            request = pending.pop(random.randrange(len(pending)))
            if request.contact in self.alive:
                table = self.tables[request.contact]
                answer = {target: table.nearest(target, self.width) for target in request.targets}
                lookup.answered(request, request.contact.node_id, answer)
            else:
                lookup.failed(request)
        return lookup


@given(st.integers(1, 80), randoms)
@settings(max_examples=25, deadline=None)
def test_finds_the_true_nearest(size: int, random):
    network = Network(size, random, width=5)
    target = random.getrandbits(160)
    lookup = Lookup([target], [random.choice(network.nodes)], own=OWN, width=5)
    assert network.run(lookup, random).nearest(target) == network.nearest(target)
    assert max(Counter(request.contact for request in network.requests).values()) == 1


@given(st.integers(20, 80), randoms)
@settings(max_examples=15, deadline=None)
def test_finds_the_nearest_alive_among_dead(size: int, random):
    dead = random.sample(range(size), size // 4)
    network = Network(size, random, dead=dead, width=8)
    target = random.getrandbits(160)
    seeds = [*random.sample(network.nodes, 5), next(iter(network.alive))]
    lookup = Lookup([target], seeds, own=OWN, width=8)
    found = network.run(lookup, random).nearest(target)
    assert set(found) <= network.alive
    assert found[:3] == network.nearest(target)[:3]
    assert found == sorted(found, key=lambda contact: contact.node_id ^ target)


@given(st.integers(5, 60), st.integers(1, 40), randoms)
@settings(max_examples=15, deadline=None)
def test_a_bulk_lookup_asks_each_peer_once(size: int, count: int, random):
    network = Network(size, random, width=5)
    targets = [random.getrandbits(160) for _ in range(count)]
    lookup = Lookup(targets, random.sample(network.nodes, 3), own=OWN, width=5)
    network.run(lookup, random)
    for target in targets:
        assert lookup.nearest(target) == network.nearest(target)
    asked = Counter((request.contact, target) for request in network.requests for target in request.targets)
    assert max(asked.values()) == 1
    if size <= 5:  # everyone is in every beam from the start
        assert max(Counter(request.contact for request in network.requests).values()) == 1


def drive(lookup: Lookup[str], answer: Callable[[Request[str]], tuple[int, dict] | None], limit: int = 5000) -> int:
    """Answer requests as they come; how many there were."""
    count = 0
    while not lookup.done:
        requests = lookup.next_requests()
        assert requests
        for request in requests:
            count += 1
            assert count < limit
            result = answer(request)
            if result is None:
                lookup.failed(request)
            else:
                lookup.answered(request, *result)
    return count


def test_alpha_and_max_parallel_bound_what_is_in_flight():
    seeds = [node(n) for n in range(50)]
    assert len(Lookup([1], seeds, own=OWN, alpha=3).next_requests()) == 3
    many = Lookup([SHA1.hash(b"%d" % n) for n in range(50)], seeds, own=OWN, width=2, max_parallel=7)
    assert len(many.next_requests()) == 7
    assert many.next_requests() == []
    assert many.in_flight == 7


def test_slow_requests_make_room_for_others_once():
    lookup = Lookup([1], [node(n) for n in range(9)], own=OWN, alpha=2)
    first, second = lookup.next_requests()
    lookup.slow(first)
    lookup.slow(first)
    [third] = lookup.next_requests()
    lookup.answered(first, first.contact.node_id, {1: []})  # late, but it counts
    assert lookup.next_requests() == []
    lookup.failed(second)
    lookup.failed(third)
    assert lookup.nearest(1) == [first.contact]
    assert len(lookup.next_requests()) == 2


def test_targets_per_request_bounds_a_request():
    lookup = Lookup(range(100), [node(1)], own=OWN, targets_per_request=30)
    sizes = []
    while not lookup.done:
        [request] = lookup.next_requests()  # one peer has one request in flight at most
        sizes.append(len(request.targets))
        lookup.answered(request, node(1).node_id, {target: [] for target in request.targets})
    assert sizes == [30, 30, 30, 10]


def test_a_liar_that_names_thousands_gets_its_share_and_no_more():
    liar, target = node(0), 12345
    named = [Contact(target ^ n, f"nobody {n}") for n in range(1, 10_000)]

    def answer(request: Request[str]):
        return (liar.node_id, {target: named}) if request.contact == liar else None

    lookup = Lookup([target], [liar, node(1)], own=OWN, width=20)
    assert drive(lookup, answer) <= 22
    assert lookup.nearest(target) == [liar]


def test_a_liar_that_names_itself_under_many_ids_is_asked_once_more_at_most():
    liar, target = node(0), 12345

    def answer(request: Request[str]):
        assert request.contact.peer == liar.peer
        return liar.node_id, {target: [Contact(target ^ n, liar.peer) for n in range(20)]}

    lookup = Lookup([target], [Contact(target, liar.peer)], own=OWN)
    assert drive(lookup, answer) == 1
    assert lookup.nearest(target) == [liar]


def test_a_peer_that_changes_its_id_fails():
    ids = iter(range(100, 200))
    lookup = Lookup([1, 2], [Contact(99, "liar")], own=OWN, targets_per_request=1)
    assert drive(lookup, lambda request: (next(ids), {request.targets[0]: []})) == 2
    assert lookup.nearest(1) == lookup.nearest(2) == []


def test_liars_without_end_are_cut_off():
    target = 0

    def answer(request: Request[str]):  # each names one that is nearer still
        nearer = request.contact.node_id - 1
        return request.contact.node_id, {target: [Contact(nearer, f"liar {nearer}")]}

    lookup = Lookup([target], [Contact(1 << 100, "liar")], own=OWN, max_requests=200)
    assert drive(lookup, answer) == 200


def test_a_wrong_claim_does_not_hide_the_true_peer():
    target, honest = 7, Contact(7, "honest")
    claims = [Contact(1 << 120, "honest"), Contact(7, "nobody")]

    def answer(request: Request[str]):
        if request.contact.peer == "honest":
            return 7, {target: []}
        return (9, {target: claims}) if request.contact.peer == "liar" else None

    lookup = Lookup([target], [Contact(9, "liar")], own=OWN)
    drive(lookup, answer)
    assert lookup.nearest(target) == [honest, Contact(9, "liar")]


def test_targets_that_an_answer_leaves_out_are_asked_for_again():
    def answer(request: Request[str]):
        return request.contact.node_id, {request.targets[0]: []}

    lookup = Lookup([1, 2, 3], [node(1)], own=OWN)
    assert drive(lookup, answer) == 3
    assert all(lookup.nearest(target) == [node(1)] for target in (1, 2, 3))


def test_an_answer_to_nothing_is_a_failure():
    lookup = Lookup([1], [node(1)], own=OWN)
    assert drive(lookup, lambda request: (request.contact.node_id, {})) == 1
    assert lookup.nearest(1) == []


def test_we_are_never_asked_ourselves():
    seeds = [OWN, Contact(5, OWN.peer), Contact(OWN.node_id, "impostor")]
    assert Lookup([1], seeds, own=OWN).done


def test_finish_ends_one_search_and_late_answers_do_no_harm():
    lookup = Lookup([1, 2], [node(n) for n in range(4)], own=OWN)
    [first, *rest] = lookup.next_requests()
    lookup.finish(1)
    assert lookup.is_finished(1)
    assert not lookup.done
    lookup.finish(2)
    assert lookup.done
    assert lookup.next_requests() == []
    lookup.answered(first, first.contact.node_id, {1: [node(9)], 2: []})
    for request in rest:
        lookup.failed(request)
    assert lookup.in_flight == 0
    assert lookup.nearest(1) == [first.contact]


def test_nothing_to_look_for_and_nobody_to_ask():
    assert Lookup([], [node(1)], own=OWN).done
    assert Lookup([1], [], own=OWN).done


def test_repr():
    lookup = Lookup([1, 2], [node(1)], own=OWN)
    lookup.next_requests()
    assert repr(lookup) == "<Lookup 0/2 targets finished, 1 contacts, 1 in flight>"


def test_a_liar_that_names_nobody_but_ghosts_costs_a_handful_of_requests():
    target, living = 0, [Contact((1 << 100) + n, f"living {n}") for n in range(15)]
    liar, ghosts = Contact(1 << 99, "liar"), [Contact(n, f"ghost {n}") for n in range(1, 21)]
    lookup = Lookup([target], [liar, living[0]], own=OWN, width=20, alpha=4)
    asked: list[str] = []
    while not lookup.done:
        for request in lookup.next_requests():
            asked.append(request.contact.peer)
            if request.contact in ghosts:
                lookup.failed(request)
            else:
                named = ghosts if request.contact == liar else [ghosts[19], *living]
                lookup.answered(request, request.contact.node_id, {target: named})
    assert lookup.nearest(target) == [liar, *living]
    # Three ghosts discredit the liar; a few more were in flight; honest peers may be wrong about one.
    assert sum(peer.startswith("ghost") for peer in asked) <= 7


def test_where_many_died_those_whom_the_discredited_named_are_asked_after_all():
    target, seed = 0, Contact(1 << 100, "seed")
    dead, alive = [Contact(n, f"dead {n}") for n in range(1, 13)], [Contact(n, f"alive {n}") for n in range(13, 21)]
    lookup = Lookup([target], [seed], own=OWN, width=20, alpha=2)
    while not lookup.done:
        for request in lookup.next_requests():
            if request.contact in dead:
                lookup.failed(request)
            else:
                lookup.answered(request, request.contact.node_id, {target: dead + alive})
    assert lookup.nearest(target) == [*alive, seed]


def test_who_is_slow_need_not_be_waited_for():
    contacts = [Contact(n, f"peer {n}") for n in range(1, 6)]
    for wait_for_slow in (True, False):
        lookup = Lookup([0], contacts, own=OWN, width=5, alpha=2, wait_for_slow=wait_for_slow)
        late, *others = lookup.next_requests()
        lookup.slow(late)
        while others:
            lookup.answered(others[0], others[0].contact.node_id, {0: []})
            others = [*others[1:], *lookup.next_requests()]
        assert lookup.done is not wait_for_slow
        assert late.contact not in lookup.nearest(0)
        if wait_for_slow:
            lookup.answered(late, late.contact.node_id, {0: []})
            assert lookup.done
    lookup = Lookup([0], contacts[:1], own=OWN, wait_for_slow=False)
    [only] = lookup.next_requests()
    lookup.slow(only)
    assert lookup.done


def captured(paths: int, random: random_module.Random) -> tuple[bool, bool]:
    """A swarm in which a node near a key names accomplices, nearer than anybody, who answer, and name each other.

    Returns:
        Whether somebody who looks for the key asks one of the honest nodes that have it, and whether another one finds
        what a third one stores there now.
    """
    network, target = Network(100, random, width=20), random.getrandbits(160)
    holders = network.nearest(target)[1:6]
    accomplices = [Contact(target ^ random.getrandbits(100), f"accomplice {n}") for n in range(200)]
    liars = {network.nearest(target)[0], *accomplices}

    def look() -> Lookup[str]:
        own = random.choice(network.nodes)
        lookup = Lookup([target], network.tables[own].nearest(target, 20)[10:], own=own, alpha=4, paths=paths)
        drive(lookup, answer)
        return lookup

    def answer(request: Request[str]) -> tuple[int, dict]:
        if request.contact in liars:
            return request.contact.node_id, {target: random.sample(accomplices, 20)}
        return request.contact.node_id, {target: network.tables[request.contact].nearest(target, 20)}

    def asked(lookup: Lookup[str]) -> set[Contact[str]]:
        return lookup._targets[target].answered - liars

    return bool(asked(look()) & set(holders)), bool(asked(look()) & set(look().spread(target, 5)[:5]))


def test_one_liar_with_accomplices_spoils_one_path():
    """Who stores and who looks may each have had bad luck with their paths: in 27 swarms of 3,291 (0.8 %) they had."""
    swarms = [captured(3, random_module.Random(seed)) for seed in range(120)]
    assert all(found for found, _ in swarms)
    assert sum(stored for _, stored in swarms) >= 0.98 * len(swarms)


def test_without_paths_the_liar_wins():
    """What the test above is worth."""
    assert not all(stored for _, stored in (captured(1, random_module.Random(seed)) for seed in range(5)))


@given(st.integers(20, 80), randoms)
@settings(max_examples=15, deadline=None)
def test_where_nobody_lies_paths_find_the_same_and_cost_little(size: int, random):
    network, target = Network(size, random, width=8), random.getrandbits(160)
    seeds = random.sample(network.nodes, 6)
    counts = []
    for paths in (1, 3):
        lookup = Lookup([target], seeds, own=OWN, width=8, paths=paths)
        network.requests.clear()
        assert network.run(lookup, random).nearest(target) == network.nearest(target)
        assert lookup.spread(target, 5)[:2] == network.nearest(target)[:2]
        counts.append(len(network.requests))
    assert counts[1] <= counts[0] + 9


@given(st.integers(8, 60), randoms, st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_narrow_lookup_asks_few_if_its_caller_is_content_and_all_if_not(size: int, random, content: bool):
    network, target = Network(size, random, width=8), random.getrandbits(160)
    heard: list[list[Contact[str]]] = []

    def ask_caller(of: int, answered: Iterable[Contact[str]]) -> bool:
        assert of == target
        heard.append(list(answered))
        return content

    seeds = random.sample(network.nodes, min(size, 20))
    lookup = Lookup([target], seeds, own=OWN, width=8, narrow=4, content=ask_caller, alpha=8)
    network.run(lookup, random)
    assert heard == [network.nearest(target)[:4]]
    assert lookup.nearest(target)[:4] == heard[0]
    assert content or lookup.nearest(target) == network.nearest(target)


def test_of_every_path_one_belongs_to_a_narrow_beam():
    contacts = sorted((node(n) for n in range(30)), key=lambda contact: contact.node_id)
    heard: list[Contact[str]] = []
    content = lambda target, answered: bool(heard.extend(answered)) or True  # noqa: E731
    lookup = Lookup([0], contacts[20:23], own=OWN, width=8, narrow=2, alpha=8, paths=3, content=content)
    liar, *honest = requests = lookup.next_requests()
    assert {request.contact for request in requests} == set(contacts[20:23])
    lookup.answered(liar, liar.contact.node_id, {0: contacts[:2]})  # nearer than anybody; nobody else names them
    for request in honest:
        lookup.answered(request, request.contact.node_id, {0: []})
    for request in lookup.next_requests():
        lookup.answered(request, request.contact.node_id, {0: contacts[:2]})
    assert lookup.done
    assert heard[:2] == contacts[:2]
    assert {request.contact for request in honest} <= set(heard)


def test_who_is_slow_ends_a_narrow_lookup_s_narrowness():
    contacts = sorted((node(n) for n in range(12)), key=lambda contact: contact.node_id)
    lookup = Lookup([0], contacts, own=OWN, width=6, narrow=2, alpha=6, content=lambda target, answered: True)
    first, second = lookup.next_requests()
    assert lookup.is_narrow([0])
    lookup.slow(first)
    assert not lookup.is_narrow([0])
    lookup.answered(second, second.contact.node_id, {0: contacts})
    assert [request.contact for request in lookup.next_requests()] == contacts[2:6]
    assert not lookup.done
