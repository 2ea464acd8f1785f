"""What the facts mean. No network."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hivemind_p2p.nat.diagnosis import Grade, Kind, diagnose
from hivemind_p2p.nat.facts import Address, Facts, RelayInUse, Sighting, Trial

HOME = (("192.168.1.7", 5005),)
HERE = "/ip4/44.1.1.1/tcp/5005"
RELAYED = (RelayInUse("relay", ("/ip4/44.9.9.9/tcp/1/p2p/relay/p2p-circuit",)),)


def seen(port: int, by: str = "44.0.0.1", ip: str = "44.1.1.1") -> Sighting:
    return Sighting(f"peer at {by}", by, ip, port, 1.0)


def tried(reached: bool, maddr: str = HERE) -> tuple[Address, ...]:
    return (Address(maddr, "reachable" if reached else "unreachable", (Trial("peer", reached, 1.0),)),)


def home(*sightings: Sighting, **more: object) -> Facts:
    return replace(Facts(listening=HOME, sightings=sightings, relays=RELAYED, fixed_port=5005), **more)


@pytest.mark.parametrize(
    ("facts", "kind", "certain"),
    [
        (home(), Kind.UNKNOWN, True),
        (home(seen(5005, ip="192.168.1.7")), Kind.LOCAL, True),
        (home(seen(5005)), Kind.NAT, True),
        (home(seen(5005), addresses=tried(False)), Kind.PORT_RESTRICTED, False),
        (home(seen(5005), seen(5005, "44.0.0.2"), addresses=tried(False)), Kind.PORT_RESTRICTED, True),
        (home(seen(5005), seen(5005, "44.0.0.2"), addresses=tried(True)), Kind.CONE, True),
        # a NAT that does not keep ports, and yet has one for all
        (home(seen(9999), seen(9999, "44.0.0.2"), addresses=tried(False)), Kind.PORT_RESTRICTED, True),
        (home(seen(9999)), Kind.SYMMETRIC, False),
        (home(seen(9999), seen(9998, "44.0.0.2")), Kind.SYMMETRIC, True),
        # two peers at one IP see what a NAT that minds addresses only would show them: not enough to be certain
        (home(seen(5005), seen(5005), addresses=tried(False)), Kind.PORT_RESTRICTED, False),
        # who dialled us says nothing about our own dials
        (home(seen(5005), seen(7777, ""), addresses=tried(False)), Kind.PORT_RESTRICTED, False),
        (home(seen(7777, "")), Kind.NAT, True),
    ],
)
def test_the_kind(facts: Facts, kind: Kind, certain: bool):
    diagnosis = diagnose(facts)
    assert (diagnosis.kind, diagnosis.certain) == (kind, certain)
    assert diagnosis.in_words.startswith("probably ") is not certain


@pytest.mark.parametrize(
    ("addresses", "kind", "certain"),
    [((), Kind.PUBLIC, False), (tried(True), Kind.PUBLIC, True), (tried(False), Kind.FIREWALLED, True)],
)
def test_a_public_address_is_open_or_not(addresses: tuple[Address, ...], kind: Kind, certain: bool):
    facts = Facts(listening=(("44.1.1.1", 5005),), sightings=(seen(5005),), addresses=addresses, relays=RELAYED)
    diagnosis = diagnose(facts)
    assert (diagnosis.kind, diagnosis.certain) == (kind, certain)


@pytest.mark.parametrize(
    ("hops", "own", "expected"),
    [
        ((), HOME, False),
        (("192.168.1.1",), HOME, False),
        (("192.168.1.1", "100.64.3.1"), HOME, True),
        (("192.168.1.1", "10.0.0.1"), HOME, True),
        (("100.64.3.1",), HOME, True),
        ((), (("100.70.1.2", 5005),), True),
    ],
)
def test_a_second_nat_is_seen_on_the_way_out(hops: tuple[str, ...], own: tuple[tuple[str, int], ...], expected: bool):
    facts = home(seen(9999), seen(9998, "44.0.0.2"), private_hops=hops, listening=own)
    diagnosis = diagnose(facts)
    assert diagnosis.behind_carrier is expected
    assert any("ask the provider" in step for step in diagnosis.steps) is expected


def test_a_forwarded_port_is_as_good_as_a_public_address():
    mapped = "/ip4/44.1.1.1/tcp/6000"
    facts = home(seen(9999), seen(9998, "44.0.0.2"), addresses=tried(True, mapped), relays=())
    assert diagnose(facts).grade is Grade.BAD
    for known in (replace(facts, announced=(mapped,)), replace(facts, mapped=mapped)):
        diagnosis = diagnose(known)
        assert (diagnosis.kind, diagnosis.grade, diagnosis.steps) == (Kind.SYMMETRIC, Grade.GOOD, ())
        assert mapped in diagnosis.verdict


def test_what_is_forwarded_does_not_make_the_nat_a_cone():
    facts = home(seen(5005), seen(5005, "44.0.0.2"), addresses=tried(True), announced=(HERE,))
    assert diagnose(facts).kind is Kind.NAT


@pytest.mark.parametrize(
    ("more", "grade", "verdict", "step"),
    [
        ({"relays": ()}, Grade.BAD, "Nobody can dial this node", "Give this node a peer that relays"),
        ({"problem": "no answer"}, Grade.BAD, "could not join", "This is what happened: no answer"),
        ({"clock_offset": 40.0}, Grade.BAD, "The clock is -40.0 s off", "Set this machine's clock"),
        ({"clock_offset": -2.0}, Grade.GOOD, "holes can be punched", "Set this machine's clock, which is +2.0 s off"),
        ({"shares_port": False}, Grade.FAIR, "cannot share a port", "forward TCP port 5005 to 192.168.1.7 port 5005"),
    ],
)
def test_what_is_wrong_is_said_with_a_step(more: dict[str, object], grade: Grade, verdict: str, step: str):
    facts = home(seen(5005), seen(5005, "44.0.0.2"), addresses=tried(False), **more)
    diagnosis = diagnose(facts)
    assert diagnosis.grade is grade
    assert verdict in diagnosis.verdict
    assert any(step in each for each in diagnosis.steps), diagnosis.steps


@pytest.mark.parametrize(("listening", "advised"), [(HOME, True), ((*HOME, ("2600::7", 5005)), False)])
def test_ipv6_that_is_not_used_is_pointed_out(listening: tuple[tuple[str, int], ...], advised: bool):
    facts = home(seen(9999), seen(9998, "44.0.0.2"), ipv6=("2600::7",), listening=listening)
    assert any("/ip6/::/tcp/5005" in step for step in diagnose(facts).steps) is advised


def test_when_all_is_well_there_is_nothing_to_do():
    facts = home(seen(5005), seen(5005, "44.0.0.2"), addresses=tried(False))
    assert diagnose(facts).steps == ()
