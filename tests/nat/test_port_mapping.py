"""When a router is asked for a port, and asked again, and when it gets it back; under a virtual clock."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from hivemind_p2p.config import NATSettings
from hivemind_p2p.errors import TransportError
from hivemind_p2p.nat import mapping as mapping_module
from hivemind_p2p.nat.mapping import Mapping, default_gateway
from hivemind_p2p.nat.port_mapping import PortMapping

HOUR = 3600


class Router:
    """One way to ask a router."""

    def __init__(self, name: str, ip: str = "44.1.1.1", *, works: bool = True) -> None:
        self.name, self.ip, self.works = name, ip, works
        self.asked: list[tuple[float, int, int]] = []
        self.given_back: list[Mapping] = []
        self.shift = 0
        self.longest = 10**6

    async def map(self, internal_port: int, external_port: int, lifetime: int) -> Mapping:
        self.asked.append((trio.current_time(), internal_port, external_port))
        if not self.works:
            raise TransportError(f"{self.name} is not there")
        return Mapping(self.name, self.ip, external_port + self.shift, internal_port, min(lifetime, self.longest))

    async def unmap(self, mapping: Mapping) -> None:
        self.given_back.append(mapping)


@asynccontextmanager
async def mapped(*routers: Router, own=("192.168.1.7", 5005)):
    changes, there = [], list(routers)
    port_mapping = PortMapping(
        NATSettings(), lambda: own, lambda: changes.append(port_mapping.held), lambda ip: list(there)
    )
    port_mapping.changes, port_mapping.routers = changes, there
    async with trio.open_nursery() as nursery:
        nursery.start_soon(port_mapping.run)
        await trio.testing.wait_all_tasks_blocked()
        assert all(router.asked == [] for router in routers), "asked before there was a need"
        port_mapping.needed.set()
        await trio.sleep(1)
        yield port_mapping
        nursery.cancel_scope.cancel()


async def test_it_is_renewed_and_given_back(autojump_clock):
    router = Router("A")
    async with mapped(router) as port_mapping:
        assert str(port_mapping.held.maddr) == "/ip4/44.1.1.1/tcp/5005"
        assert port_mapping.state == "A: /ip4/44.1.1.1/tcp/5005 leads to port 5005"
        await trio.sleep(2 * HOUR)
        times = [at for at, *_ in router.asked]
        assert all(later - earlier <= HOUR / 2 for earlier, later in itertools.pairwise(times))
        assert len(times) >= 6
        assert len(port_mapping.changes) == 1, "renewing changes nothing"
        await port_mapping.withdraw()
        assert [mapping.external_port for mapping in router.given_back] == [5005]


@pytest.mark.parametrize(("longest", "renewals"), [(120, 90), (0, 180)])
async def test_a_router_that_promises_little_is_asked_more_often_but_not_without_end(autojump_clock, longest, renewals):
    router = Router("A")
    router.longest = longest
    async with mapped(router):
        await trio.sleep(HOUR)
        assert renewals <= len(router.asked) <= renewals + 2


async def test_another_port_than_the_one_wanted_is_kept_at_renewals(autojump_clock):
    router = Router("A")
    router.shift = 2
    async with mapped(router) as port_mapping:
        assert port_mapping.held.external_port == 5007
        router.shift = 0
        await trio.sleep(HOUR)
        assert {wanted for _, _, wanted in router.asked[1:]} == {5007}


async def test_the_next_way_is_tried_and_then_comes_first(autojump_clock):
    pmp, upnp = Router("A", works=False), Router("B")
    async with mapped(pmp, upnp) as port_mapping:
        assert port_mapping.held.way == "B"
        await trio.sleep(HOUR)
        assert len(pmp.asked) == 1


async def test_a_router_that_stops_is_missed_and_found_again(autojump_clock):
    router = Router("A")
    async with mapped(router) as port_mapping:
        router.works = False
        await trio.sleep(HOUR)
        assert port_mapping.held is None
        assert port_mapping.changes[-1] is None
        assert port_mapping.state == "A is not there"
        router.works = True
        await trio.sleep(HOUR)
        assert port_mapping.held is not None
        assert len(port_mapping.changes) == 3


async def test_who_never_answers_is_asked_ever_less_often(autojump_clock):
    router = Router("A", works=False)
    async with mapped(router) as port_mapping:
        await trio.sleep(24 * HOUR)
        assert 24 < len(router.asked) < 40
        assert port_mapping.changes == []


async def test_in_another_network_another_router_is_asked_at_once(autojump_clock):
    home, cafe = Router("A"), Router("B", "44.7.7.7")
    async with mapped(home) as port_mapping:
        assert port_mapping.held.external_ip == "44.1.1.1"
        for there, external_ip in ((cafe, "44.7.7.7"), (Router("C", works=False), None), (home, "44.1.1.1")):
            port_mapping.routers[:] = [there]
            port_mapping.network_changed()
            assert port_mapping.held is None
            assert port_mapping.changes[-1] is None
            await trio.sleep(1)
            assert (port_mapping.held.external_ip if port_mapping.held else None) == external_ip
        assert len(cafe.asked) == 1


@pytest.mark.parametrize("outside", ["100.64.1.2", "192.168.0.2", "10.1.1.1", "0.0.0.0", "nonsense"])
async def test_a_router_whose_own_address_is_not_public_is_not_used(autojump_clock, outside):
    router = Router("A", outside)
    async with mapped(router) as port_mapping:
        assert port_mapping.held is None
        assert f"outside address is {outside}: another NAT is in front of it" in port_mapping.state
        assert len(router.given_back) == 1


async def test_without_a_private_address_nobody_is_asked(autojump_clock):
    router = Router("A")
    async with mapped(router, own=None) as port_mapping:
        assert router.asked == []
        assert "listens on no private IPv4 address" in port_mapping.state


def test_the_gateway_is_the_one_of_the_default_route(monkeypatch, tmp_path: Path):
    routes = tmp_path / "route"
    routes.write_text(
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        "eth0\t00000000\tFE01A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    )
    monkeypatch.setattr(mapping_module, "_ROUTES", routes)
    monkeypatch.setattr("sys.platform", "linux")
    assert default_gateway("192.168.1.7") == "192.168.1.254"
    routes.write_text("Iface\n")
    assert default_gateway("192.168.1.7") == "192.168.1.1"
    monkeypatch.setattr("sys.platform", "darwin")
    assert default_gateway("10.0.3.7") == "10.0.3.1"
