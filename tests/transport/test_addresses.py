"""Multiaddrs: what can be dialled, what is announced, what is believed."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from hivemind_p2p.transport.addresses import (
    Circuit,
    believable,
    circuit_maddr,
    circuit_of,
    endpoint_of,
    expand,
    for_dialing,
    interface_ips,
    is_public,
    maddr_of,
    read_maddr,
    split_peer,
    why_undialable,
    with_peer,
)
from hivemind_p2p.transport.identity import Identity

PEER, OTHER = Identity.generate().peer_id, Identity.generate().peer_id


@pytest.mark.parametrize(
    "text",
    ["/ip4/203.0.113.5/tcp/31337", "/ip6/2001:db8::1/tcp/1", "/dns4/example.org/tcp/65535", "/dns/a.b/tcp/1"],
)
def test_dialable_addresses(text):
    assert why_undialable(Multiaddr(text)) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("/ip4/0.0.0.0/tcp/31337", "to listen on"),
        ("/ip6/::/tcp/31337", "to listen on"),
        ("/ip4/203.0.113.5/tcp/0", "port 0"),
        ("/ip4/224.0.0.1/tcp/1", "not the address of one machine"),
        ("/ip6/ff02::1/tcp/1", "not the address of one machine"),
        ("/ip6/fe80::1/tcp/1", "link-local"),
        ("/ip4/203.0.113.5/udp/4001/quic-v1", "not a TCP address"),
        ("/ip4/203.0.113.5/tcp/4001/ws", "not a TCP address"),
        (f"/ip4/203.0.113.5/udp/4001/quic-v1/p2p/{PEER}/p2p-circuit", "not a TCP address"),
        (f"/ip4/203.0.113.5/tcp/4001/p2p/{PEER}/p2p-circuit/p2p/{PEER}/p2p-circuit", "not a TCP address"),
        (f"/ip4/0.0.0.0/tcp/4001/p2p/{PEER}/p2p-circuit", "an address to listen on"),
        ("/dnsaddr/bootstrap.libp2p.io", "not a TCP address"),
    ],
)
def test_addresses_that_make_no_sense_say_why(text, why):
    assert why in why_undialable(Multiaddr(text))


@given(st.binary(max_size=40))
@example(b"\xff")  # ends within a number
@example(b"\xa5\x03")
@example(b"*\x01\x00")
@example(b"\x36" + b"\xff" * 9 + b"\x01")  # a length that no machine has
def test_bytes_of_peers_are_an_address_or_a_value_error(raw: bytes):
    try:
        maddr = read_maddr(raw)
    except ValueError:
        return
    assert len(list(maddr.items())) == len(list(maddr.protocols()))


def test_what_is_longer_than_any_address_is_none():
    assert read_maddr(Multiaddr("/dns4/" + ".".join(["a" * 62] * 4) + "/tcp/1").to_bytes())
    with pytest.raises(ValueError, match="600 bytes are more than an address has"):
        read_maddr(b"\x06\x00\x01" * 200)


def test_the_peer_is_taken_off_and_put_on():
    bare = Multiaddr("/ip4/203.0.113.5/tcp/31337")
    assert split_peer(bare) == (bare, None)
    full = with_peer(bare, PEER)
    assert str(full) == f"/ip4/203.0.113.5/tcp/31337/p2p/{PEER}"
    assert split_peer(full) == (bare, PEER)
    assert split_peer(with_peer(full, OTHER)) == (bare, OTHER)


def test_a_circuit_keeps_its_relay():
    circuit = Multiaddr(f"/ip4/203.0.113.5/tcp/1/p2p/{PEER}/p2p-circuit")
    assert split_peer(circuit) == (circuit, None)
    assert split_peer(with_peer(circuit, OTHER)) == (circuit, OTHER)


def test_mapped_addresses_become_ipv4():
    assert str(maddr_of("::ffff:192.0.2.1", 5)) == "/ip4/192.0.2.1/tcp/5"
    assert str(maddr_of("fe80::1%eth0", 5)) == "/ip6/fe80::1/tcp/5"
    assert endpoint_of(maddr_of("2001:db8::1", 5)).host == "2001:db8::1"


def test_listening_everywhere_stands_for_every_interface_and_loopback_only_when_alone():
    everywhere = [Multiaddr("/ip4/0.0.0.0/tcp/5"), Multiaddr("/ip6/::/tcp/6")]
    ips = ["192.0.2.2", "2001:db8::2", "127.0.0.1", "::1"]
    assert [str(maddr) for maddr in expand(everywhere, ips)] == ["/ip4/192.0.2.2/tcp/5", "/ip6/2001:db8::2/tcp/6"]
    assert [str(maddr) for maddr in expand(everywhere, ips[2:])] == ["/ip4/127.0.0.1/tcp/5", "/ip6/::1/tcp/6"]
    named = [Multiaddr("/ip4/127.0.0.1/tcp/5")]
    assert expand(named, ips) == named


def test_this_machine_has_loopback_and_names_it_last():
    ips = interface_ips()
    assert "127.0.0.1" in ips
    loopback = [ip in {"127.0.0.1", "::1"} for ip in ips]
    assert loopback == sorted(loopback)


def test_only_who_is_on_this_machine_may_name_loopback():
    told = [Multiaddr("/ip4/127.0.0.1/tcp/22"), Multiaddr("/ip4/203.0.113.5/tcp/1"), Multiaddr("/ip4/0.0.0.0/tcp/1")]
    far, near = Multiaddr("/ip4/198.51.100.1/tcp/9"), Multiaddr("/ip4/127.0.0.1/tcp/9")
    assert believable(told, told_by=far, limit=9) == told[1:2]
    assert believable(told, told_by=None, limit=9) == told[1:2]
    assert believable(told, told_by=near, limit=9) == told[:2]
    assert believable(told * 3, told_by=near, limit=1) == told[:1]


def test_a_circuit_is_told_from_a_direct_address():
    relay = PEER
    at = Multiaddr("/ip4/203.0.113.5/tcp/4001")
    circuit = circuit_maddr(relay, at)
    assert str(circuit) == f"/ip4/203.0.113.5/tcp/4001/p2p/{PEER}/p2p-circuit"
    assert circuit_of(circuit) == Circuit(relay, at)
    assert circuit_of(circuit_maddr(relay, None)) == Circuit(relay, None)
    assert circuit_of(at) is None
    assert circuit_of(Multiaddr(f"/ip4/203.0.113.5/tcp/4001/p2p/{PEER}")) is None
    assert endpoint_of(circuit) is None
    assert not is_public(circuit)
    assert split_peer(with_peer(circuit, relay)) == (circuit, relay)


def test_direct_addresses_are_tried_before_circuits_and_far_private_ones_last():
    circuit = circuit_maddr(PEER, Multiaddr("/ip4/44.1.1.1/tcp/1"))
    near, far, public = (Multiaddr(f"/ip4/{ip}/tcp/1") for ip in ("192.168.1.9", "10.0.0.9", "44.2.2.2"))
    assert for_dialing([circuit, far, near, public], ["192.168.1.7/24"]) == [near, public, circuit, far]


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("/ip4/44.1.1.1/tcp/1", True),
        ("/dns4/example.com/tcp/1", True),
        ("/dns4/localhost/tcp/1", False),
        ("/ip4/192.168.1.1/tcp/1", False),
        ("/ip4/100.64.0.1/tcp/1", False),
        ("/ip4/224.0.0.1/tcp/1", False),
        ("/ip6/2600::1/tcp/1", True),
        ("/ip6/fd00::1/tcp/1", False),
    ],
)
def test_what_is_public(text: str, public: bool):
    assert is_public(Multiaddr(text)) is public
