"""TXT records of libp2p's mDNS: what is written, what is read, and what is not taken from strangers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from hivemind_p2p.nat import local_peers
from hivemind_p2p.nat.dnsaddr import decode, encode
from hivemind_p2p.transport.addresses import with_peer
from hivemind_p2p.wire.peer_id import PeerID

PEER = PeerID.from_base58("12D3KooWSzyjKBkg2TrVkdoZqcPZXxPrZpF1xwMBmdPAdaB7yZRs")
NETWORKS = ["192.168.1.7/24", "fd00::7/64"]
HERE = Multiaddr("/ip4/192.168.1.9/tcp/4001")


def record(*texts: str) -> bytes:
    return b"".join(bytes([len(text)]) + text.encode() for text in texts)


def test_addresses_go_there_and_back():
    assert encode([HERE], PEER) == record(f"dnsaddr=/ip4/192.168.1.9/tcp/4001/p2p/{PEER}")
    assert decode(encode([HERE], PEER), NETWORKS) == {PEER: [with_peer(HERE, PEER)]}


def test_records_stay_small():
    many = [Multiaddr(f"/ip4/192.168.1.9/tcp/{port}") for port in range(1, 100)]
    assert len(decode(encode(many, PEER), NETWORKS)[PEER]) == 8
    assert len(decode(encode(many[:8], PEER) * 3, NETWORKS)[PEER]) == 8
    assert encode([Multiaddr(f"/dns/{'.'.join(['x' * 60] * 4)}/tcp/1")], PEER) == b""


@pytest.mark.parametrize(
    "text",
    [
        f"dnsaddr=/ip4/10.0.0.1/tcp/22/p2p/{PEER}",  # of another network
        f"dnsaddr=/ip4/44.1.1.1/tcp/22/p2p/{PEER}",
        f"dnsaddr=/ip4/127.0.0.1/tcp/22/p2p/{PEER}",
        f"dnsaddr=/dns/router/tcp/22/p2p/{PEER}",
        f"dnsaddr=/ip4/192.168.1.9/udp/4001/quic-v1/p2p/{PEER}",
        f"dnsaddr=/ip4/192.168.1.9/tcp/0/p2p/{PEER}",
        f"dnsaddr=/ip4/192.168.1.9/tcp/1/p2p/{PEER}/p2p-circuit/p2p/{PEER}",
        "dnsaddr=/ip4/192.168.1.9/tcp/4001",
        "dnsaddr=nonsense",
        f"/ip4/192.168.1.9/tcp/4001/p2p/{PEER}",
        "",
    ],
)
def test_what_is_no_direct_address_of_this_network_is_left_out(text: str):
    good = f"dnsaddr=/ip6/fd00::9/tcp/4001/p2p/{PEER}"
    assert decode(record(text, good), NETWORKS) == {PEER: [Multiaddr(good.removeprefix("dnsaddr="))]}


@given(st.binary(max_size=300))
def test_garbage_names_nobody(data: bytes):
    assert decode(data, NETWORKS) == {}


@pytest.mark.parametrize(
    ("listening", "expected"),
    [
        (["/ip4/192.168.1.7/tcp/1", "/ip4/44.1.1.1/tcp/1", "/ip4/127.0.0.1/tcp/1"], ["192.168.1.7"]),
        (["/ip4/127.0.0.1/tcp/1"], []),
        (["/ip4/44.1.1.1/tcp/1"], []),
        ([], ["192.168.1.7", "172.17.0.1"]),  # a client listens to others, everywhere in private
    ],
)
def test_nothing_is_said_in_public_and_where_we_do_not_listen(monkeypatch, listening, expected):
    interfaces = ["44.1.1.1", "192.168.1.7", "172.17.0.1", "fd00::7", "127.0.0.1"]
    monkeypatch.setattr(local_peers, "interface_ips", lambda: interfaces)
    assert local_peers.speaking_ips([Multiaddr(maddr) for maddr in listening]) == expected
