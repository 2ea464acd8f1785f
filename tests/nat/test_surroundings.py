"""When a machine is in another network, and when it is not."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path

import pytest

from hivemind_p2p.nat import mapping, surroundings
from hivemind_p2p.nat.surroundings import Change, ChangeDetector, Surroundings, look_around

HOME = Surroundings(frozenset({"192.168.1.7"}), ("192.168.1.7",), "192.168.1.1", "aa:aa:aa:aa:aa:aa", "2 1")
NOWHERE = Surroundings()
WITHOUT_MAC = replace(HOME, router_mac="")


@pytest.mark.parametrize(
    "elsewhere",
    [
        replace(HOME, ips=frozenset({"10.0.0.3"}), ways_out=("10.0.0.3",), router="10.0.0.1"),
        replace(HOME, ways_out=("192.168.1.7", "2001:db8::7")),
        replace(HOME, router="192.168.1.254"),
        replace(HOME, router_mac="bb:bb:bb:bb:bb:bb"),
        replace(HOME, link="2 3"),
        replace(HOME, link="9 1"),
    ],
)
def test_another_address_way_out_router_or_link_is_another_network(elsewhere: Surroundings):
    detector = ChangeDetector(HOME)
    assert detector.saw(HOME, 0) is Change.NOTHING
    assert detector.saw(elsewhere, 2) is Change.NETWORK
    assert detector.saw(elsewhere, 4) is Change.NOTHING


def test_an_address_more_or_less_is_no_other_network():
    detector = ChangeDetector(HOME)
    docker = replace(HOME, ips=HOME.ips | {"172.17.0.1"})
    assert detector.saw(docker, 2) is Change.ADDRESSES
    assert detector.saw(docker, 4) is Change.NOTHING
    assert detector.saw(HOME, 6) is Change.ADDRESSES


def test_a_router_whose_hardware_address_is_not_known_is_the_same():
    detector = ChangeDetector(WITHOUT_MAC)
    assert detector.saw(HOME, 2) is Change.NOTHING
    assert detector.saw(WITHOUT_MAC, 4) is Change.NOTHING
    assert detector.saw(replace(HOME, router_mac="bb:bb:bb:bb:bb:bb"), 6) is Change.NETWORK


def test_on_the_way_from_one_network_to_the_next_nothing_is_said():
    detector = ChangeDetector(HOME)
    for now in range(2, 1000, 2):
        assert detector.saw(NOWHERE, now) is Change.NOTHING
    assert detector.saw(HOME, 1000) is Change.NETWORK, "whatever was connected may be dead by now"
    assert detector.saw(HOME, 1002) is Change.NOTHING


def test_a_network_without_a_way_out_is_one_after_a_while():
    island = Surroundings(frozenset({"10.5.5.5"}))
    detector = ChangeDetector(HOME)
    assert [detector.saw(island, now) for now in (2, 6, 10)] == [Change.NOTHING] * 3
    assert detector.saw(island, 12) is Change.NETWORK
    assert [detector.saw(island, now) for now in (14, 100)] == [Change.NOTHING] * 2
    assert "no way out" in repr(detector)
    assert detector.saw(HOME, 102) is Change.NETWORK


def test_looking_around_finds_this_machine_and_twice_the_same():
    seen = look_around()
    assert all(not ipaddress.ip_address(ip).is_loopback for ip in seen.ips)
    assert set(seen.ways_out) <= seen.ips
    assert ChangeDetector(seen).saw(look_around(), 0) is Change.NOTHING


def test_the_routers_hardware_address_is_in_the_neighbour_table(monkeypatch, tmp_path: Path):
    head = "IP address       HW type     Flags       HW address            Mask     Device\n"
    (tmp_path / "arp").write_text(
        f"{head}192.168.1.9      0x1         0x2         cc:cc:cc:cc:cc:cc     *        eth0\n"
        "192.168.1.1      0x1         0x2         aa:aa:aa:aa:aa:aa     *        eth0\n"
    )
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(surroundings, "_ARP", tmp_path / "arp")
    assert surroundings._mac_of("192.168.1.1") == "aa:aa:aa:aa:aa:aa"
    assert surroundings._mac_of("192.168.1.2") == ""
    (tmp_path / "arp").write_text(
        f"{head}192.168.1.1      0x1         0x0         00:00:00:00:00:00     *        eth0\n"
    )
    assert surroundings._mac_of("192.168.1.1") == ""
    monkeypatch.setattr(surroundings, "_ARP", tmp_path / "there is none")
    monkeypatch.setattr(mapping, "_ROUTES", tmp_path / "there is none")
    assert surroundings._mac_of("192.168.1.1") == ""
    assert look_around().router == ""
