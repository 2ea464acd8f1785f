"""The laboratory itself: every kind of NAT behaves as it is named, and the network allows what is said of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.nat.lab.kinds import KINDS
from tests.nat.lab.lab import Lab
from tests.nat.lab.probes import Reflectors, check, hairpins
from tests.nat.lab.punches import punch_tcp


@pytest.mark.parametrize("kind", KINDS)
def test_a_nat_behaves_as_it_is_named(make_lab: Callable[..., Lab], kind: str):
    lab = make_lab()
    check(lab, lab.site("a", kind))


@pytest.mark.parametrize(("kind", "expected"), [("port-restricted", False), ("hairpin", True)])
def test_two_hosts_behind_one_nat_meet_at_its_public_address_only_with_hairpin(
    make_lab: Callable[..., Lab], kind: str, expected: bool
):
    lab = make_lab()
    site = lab.site("two", kind, hosts=2)
    with Reflectors(lab) as reflectors:
        assert hairpins(lab, site, reflectors) is expected


@pytest.mark.parametrize(
    ("one", "other", "possible"),
    [
        ("port-restricted", "port-restricted", True),
        ("restricted", "symmetric", True),
        ("symmetric", "port-restricted", False),
        ("symmetric", "symmetric", False),
    ],
)
def test_what_the_network_allows(make_lab: Callable[..., Lab], one: str, other: str, possible: bool):
    lab = make_lab(delay_ms=2)
    a, b = lab.site("a", one), lab.site("b", other)
    seconds = 3.0 if possible else 0.5
    with Reflectors(lab) as reflectors:
        assert (punch_tcp(lab, a.host, b.host, reflectors, seconds=seconds) is not None) is possible
