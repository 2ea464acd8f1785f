"""Nodes in one network that know of nobody find each other, and whoever else speaks libp2p's mDNS."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
import threading
from collections.abc import Callable

import pytest
import trio
import trio.testing

from hivemind_p2p.nat import local_peers
from hivemind_p2p.nat.local_peers import LocalPeers
from tests.nat.lab.lab import Lab
from tests.nat.lab.namespaces import Host, in_netns
from tests.nat.lab.peers import Peer
from tests.nat.memory import swarm

MDNS = {"nat.mdns": True}
GROUP = ("224.0.0.251", 5353)
SERVICE = b"\x04_p2p\x04_udp\x05local\x00"


def test_two_nodes_that_were_told_of_nobody_become_one_swarm(lab: Lab, start: Callable[..., Peer]):
    site = lab.site("home", "port-restricted", hosts=2)
    one, other = (start(host, settings=MDNS) for host in site.hosts)
    assert other.ask("until_connected", one.peer_id, 20) == "direct"
    assert other.ask("put", "key", "value")
    assert one.ask("get", "key") == "value"


def test_who_comes_into_a_network_finds_the_peers_there_at_once(lab: Lab, start: Callable[..., Peer]):
    home, cafe = lab.site("home", "port-restricted"), lab.site("cafe", "port-restricted")
    resident = start(cafe.host, settings=MDNS)
    moving = start(home.host, settings=MDNS, look_around=3600)
    home.host.ip = home.host.ip.rpartition(".")[0] + ".200"  # which nobody in the cafe has
    lab.move(home.host, cafe)
    assert moving.ask("until_connected", resident.peer_id, 40) == "direct"


async def test_who_was_heard_before_is_told_again_in_another_network(autojump_clock, monkeypatch):
    """Also one that came along; nothing but what mDNS hears is a stand-in here."""
    told, speaking = [], []

    class Deaf(LocalPeers):
        async def _speak(self, ips):
            speaking.append(ips)
            await self._a_while()

    async def found(maddrs):
        told.append([str(maddr) for maddr in maddrs])

    monkeypatch.setattr(local_peers, "speaking_ips", lambda listening: ["192.168.1.2"])
    monkeypatch.setattr(local_peers, "interface_networks", lambda: ["192.168.1.2/24"])
    address = "/ip4/192.168.1.3/tcp/4001/p2p/12D3KooWSzyjKBkg2TrVkdoZqcPZXxPrZpF1xwMBmdPAdaB7yZRs"
    record = bytes([len(address) + 8]) + f"dnsaddr={address}".encode()
    async with swarm() as net:
        peer = await net.start()
        async with Deaf(peer.host, found) as neighbours:
            for changes in range(3):
                neighbours._heard(record)
                neighbours._heard(record)
                await neighbours.met.wait()
                await trio.testing.wait_all_tasks_blocked()
                assert (told, len(speaking)) == ([[address]] * (changes + 1), changes + 1)
                before = trio.current_time()
                neighbours.network_changed()
                await trio.testing.wait_all_tasks_blocked()
                assert trio.current_time() == before


def test_without_it_nobody_is_found(lab: Lab, start: Callable[..., Peer]):
    site = lab.site("home", "port-restricted", hosts=2)
    silent = start(site.hosts[0], settings={"nat.mdns": False})
    listening = start(site.hosts[1], settings=MDNS)  # which waits for others before it is ready
    assert silent.ask("paths", listening.peer_id) == []


def test_the_command_finds_them_by_itself(lab: Lab, start: Callable[..., Peer], monkeypatch):
    monkeypatch.delenv("HIVEMIND_P2P_NAT__MDNS")
    site = lab.site("home", "port-restricted", hosts=2)
    node = start(site.hosts[0], settings=MDNS)
    command = [sys.executable, "-m", "hivemind_p2p", "bootstrap", "--json"]
    with site.hosts[1].popen(command, stdout=-1, text=True) as process:
        too_late = threading.Timer(60, process.kill)
        too_late.start()
        try:
            ready = json.loads(process.stdout.readline())
            assert node.ask("until_connected", ready["peer_id"], 20) == "direct"
        finally:
            too_late.cancel()
            process.kill()


def test_it_answers_as_the_specification_says(lab: Lab, start: Callable[..., Peer]):
    site = lab.site("home", "port-restricted", hosts=2)
    node = start(site.hosts[0], settings=MDNS, host_maddrs=["/ip4/0.0.0.0/tcp/5005"])
    with speaking(site.hosts[1]) as sock:
        sock.sendto(struct.pack("!6H", 0, 0, 1, 0, 0, 0) + SERVICE + struct.pack("!2H", 12, 1), GROUP)
        expected = f"dnsaddr=/ip4/{site.hosts[0].ip}/tcp/5005/p2p/{node.peer_id}".encode()
        while True:
            data, (sender, _) = sock.recvfrom(9000)
            if sender == site.hosts[0].ip and data[2] & 0x80 and expected in data:
                break
    assert SERVICE in data
    assert bytes([len(expected)]) + expected in data  # one string of a TXT record


@pytest.mark.parametrize("addresses", [["{ip}"], ["{ip}", "127.0.0.1"], ["127.0.0.1", "{ip}", "10.1.2.3"]], ids=len)
def test_it_hears_what_others_answer(lab: Lab, start: Callable[..., Peer], addresses: list[str]):
    """The least that the specification asks for: the service leads to a peer's name, and that to its TXT record; or to
    one for each of its addresses, as js-libp2p has it."""
    site = lab.site("home", "port-restricted", hosts=2)
    stranger = site.hosts[1]
    with stranger.socket(socket.SOCK_STREAM, 4001, timeout=30) as listener, speaking(stranger) as sock:
        listener.listen()
        start(site.hosts[0], settings=MDNS)
        peer_id = "12D3KooWSzyjKBkg2TrVkdoZqcPZXxPrZpF1xwMBmdPAdaB7yZRs"
        ips = [each.format(ip=stranger.ip) for each in addresses]
        sock.sendto(answer(*(f"dnsaddr=/ip4/{ip}/tcp/4001/p2p/{peer_id}".encode() for ip in ips)), GROUP)
        connection, (caller, _) = listener.accept()
        connection.close()
        assert caller == site.hosts[0].ip


def test_a_name_that_is_none_does_not_keep_it_from_hearing_others(lab: Lab, start: Callable[..., Peer]):
    site = lab.site("home", "port-restricted", hosts=2)
    stranger = site.hosts[1]
    with stranger.socket(socket.SOCK_STREAM, 4001, timeout=30) as listener, speaking(stranger) as sock:
        listener.listen()
        start(site.hosts[0], settings=MDNS)
        sock.sendto(answer(label=b"not\x01a name"), GROUP)
        peer_id = "12D3KooWSzyjKBkg2TrVkdoZqcPZXxPrZpF1xwMBmdPAdaB7yZRs"
        sock.sendto(answer(f"dnsaddr=/ip4/{stranger.ip}/tcp/4001/p2p/{peer_id}".encode()), GROUP)
        connection, (caller, _) = listener.accept()
        connection.close()
        assert caller == site.hosts[0].ip


@contextlib.contextmanager
def speaking(host: Host):
    """A socket that takes part in mDNS: on its port, in its group."""
    with in_netns(host.ns):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(host.ip))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        sock.bind(("", GROUP[1]))
        joined = socket.inet_aton(GROUP[0]) + socket.inet_aton(host.ip)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
        sock.settimeout(20)
        yield sock


def answer(*texts: bytes, label: bytes = b"k4x0v7qzmnbw2d9s") -> bytes:
    """PTR and TXT as one response."""
    name = bytes([len(label)]) + label + SERVICE

    def resource(owner: bytes, kind: int, data: bytes) -> bytes:
        return owner + struct.pack("!HHIH", kind, 1, 120, len(data)) + data

    return (
        struct.pack("!6H", 0, 0x8400, 0, 1, 0, len(texts))
        + resource(SERVICE, 12, name)
        + b"".join(resource(name, 16, bytes([len(text)]) + text) for text in texts)
    )
