"""go-libp2p (hivemind's p2pd) and js-libp2p in the laboratory: they relay for us, and meet us through our relays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from hivemind_p2p.nat.hole_punching import DCUTR
from tests.interop.js_libp2p import js_peer
from tests.nat.lab.foreign import go_peer
from tests.nat.lab.lab import Lab
from tests.nat.lab.namespaces import Host
from tests.nat.lab.peers import Peer, PeerFailed

MIB = 2**20
LISTEN = ["/ip4/0.0.0.0/tcp/4001"]
LITTLE = 2**17
LIMITS = {"p2pd": [(120, LITTLE), (1800, 2**32)], "js": [(120_000, LITTLE)], "js without limits": [None]}
"""Seconds and bytes that a circuit through them may take, as they say. A p2pd starts two relay services, one with
go-libp2p's limits and one with its own; which of them answers is chance. js says milliseconds."""


async def ask(peer: Peer, command: str, *args: Any) -> Any:
    """``peer.ask``, while this task's loop goes on: what a p2pd serves is served here."""
    return await trio.to_thread.run_sync(partial(peer.ask, command, *args))


def js_in(host: Host, **options: Any) -> Any:
    return js_peer(inside=host.argv([]), **{"listen": LISTEN, **options})


def circuit_of(peer: Peer) -> str:
    return next(maddr for maddr in peer.ask("visible") if "p2p-circuit" in maddr)


@asynccontextmanager
async def foreign_relay(kind: str, host: Host) -> AsyncIterator[tuple[str, str]]:
    """A relay of another implementation in public: its peer id and its address."""
    if kind == "p2pd":
        async with go_peer(host, "-forceReachabilityPublic") as relay:
            yield relay.peer_id, relay.maddr
    else:
        with js_in(host, relay=True if kind == "js" else {"applyDefaultLimit": False}) as relay:
            yield relay.peer_id.base58, f"/ip4/{host.ip}/tcp/4001/p2p/{relay.peer_id}"


# They relay


@pytest.mark.parametrize("kind", ["p2pd", "js", "js without limits"])
async def test_we_are_reached_through_a_relay_of_theirs(lab: Lab, start: Callable[..., Peer], kind: str):
    async with foreign_relay(kind, lab.public("relay")) as (relay, maddr):
        one, two = (start(lab.site(name, "symmetric").host, initial_peers=[maddr], dht=False) for name in "ab")
        assert one.ask("relays") == two.ask("relays") == [relay]
        await ask(one, "connect", circuit_of(two))
        assert await ask(one, "call", two.peer_id) == f"relayed by {relay}"
        limit = one.ask("limit", two.peer_id)
        assert limit in LIMITS[kind]
        assert two.ask("limit", one.peer_id) == limit
        if limit is not None and limit[1] == LITTLE:
            with pytest.raises(PeerFailed, match=r"RelayLimited: .* carries 131072 bytes on a connection"):
                await ask(one, "send", two.peer_id, MIB, 3.0)
            assert await ask(one, "call", two.peer_id) == f"relayed by {relay}"
            for _ in range(4):  # together more than a circuit carries
                assert (await ask(one, "send", two.peer_id, LITTLE // 2))[1] == f"relayed by {relay}"
        else:
            assert (await ask(one, "send", two.peer_id, 4 * MIB))[1] == f"relayed by {relay}"


async def test_what_a_relay_of_theirs_does_not_carry_waits_for_the_direct_connection(
    lab: Lab, start: Callable[..., Peer]
):
    async with foreign_relay("js", lab.public("relay")) as (_, maddr):
        one, two = (start(lab.site(name, "port-restricted").host, initial_peers=[maddr], dht=False) for name in "ab")
        assert await ask(one, "connect", circuit_of(two)) < 20
        assert (await ask(one, "send", two.peer_id, 4 * MIB))[1] == "direct"


# We relay


async def test_p2pd_reaches_us_through_our_relay(lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer]):
    boot = bootstrap()
    ours = start(lab.site("a", "symmetric").host, initial_peers=boot.maddrs, dht=False)
    async with go_peer(lab.site("b", "symmetric").host) as theirs:
        await theirs.connect(circuit_of(ours))
        assert await theirs.echo(ours.peer_id, MIB)
        assert await ask(ours, "call", theirs.peer_id, MIB) == f"relayed by {boot.peer_id}"


async def test_js_and_we_reach_each_other_through_our_relay(
    lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer]
):
    boot = bootstrap()
    ours = start(lab.site("a", "symmetric").host, initial_peers=boot.maddrs, dht=False)
    with js_in(lab.site("b", "symmetric").host) as theirs:
        assert await theirs.do("connect", maddr=circuit_of(ours)) == "relayed"
        assert await theirs.do("echo", peer=ours.peer_id, size=MIB)
        assert await ask(ours, "call", theirs.peer_id.base58, MIB) == f"relayed by {boot.peer_id}"
    at_relay = f"{boot.maddrs[0]}/p2p-circuit"
    with js_in(lab.site("c", "symmetric").host, listen=[*LISTEN, at_relay]) as theirs:
        await ask(ours, "connect", f"{at_relay}/p2p/{theirs.peer_id}")
        assert await ask(ours, "call", theirs.peer_id.base58, MIB) == f"relayed by {boot.peer_id}"
        assert await theirs.do("echo", peer=ours.peer_id, size=MIB)


# Whether we are reached


@pytest.mark.parametrize(("kind", "reached"), [("none", True), ("firewalled", False), ("port-restricted", False)])
async def test_js_proves_that_it_reaches_us_or_says_that_it_does_not(
    lab: Lab, start: Callable[..., Peer], kind, reached
):
    host, site = lab.public("js"), lab.site("a", kind)
    with js_in(host, autonat=True) as theirs:
        maddr = f"/ip4/{host.ip}/tcp/4001/p2p/{theirs.peer_id}"
        ours = start(site.host, host_maddrs=LISTEN, initial_peers=[maddr], dht=False)
        tried = await ask(ours, "until_tried", f"/ip4/{site.public_ip}/tcp/4001", 50.0)
        assert tried == [(theirs.peer_id.base58, reached, 2)]
        assert await theirs.do("echo", peer=ours.peer_id, size=1000), "its dial back took nothing from the connection"


def second_ip(lab: Lab, host: Host) -> str:
    """Another public IP address of a host; what it dials leaves from the first."""
    ip = f"{lab.net3}.200"
    host.run(["ip", "addr", "add", f"{ip}/24", "dev", "wan"], check=True)
    return ip


async def test_js_reaches_us_at_another_ip_once_we_have_paid(lab: Lab, start: Callable[..., Peer]):
    host, own = lab.public("js"), lab.public("a")
    elsewhere = f"/ip4/{second_ip(lab, own)}/tcp/4001"
    with js_in(host, autonat=True) as theirs:
        maddr = f"/ip4/{host.ip}/tcp/4001/p2p/{theirs.peer_id}"
        ours = start(own, host_maddrs=LISTEN, announce_maddrs=[elsewhere], initial_peers=[maddr], dht=False)
        assert await ask(ours, "until_tried", elsewhere, 50.0) == [(theirs.peer_id.base58, True, 2)]


@pytest.mark.parametrize("at_another_ip", [False, True])
async def test_we_prove_to_js_that_it_is_reached(lab: Lab, bootstrap: Callable[..., Peer], at_another_ip: bool):
    boot, host = bootstrap(), lab.public("js")
    listen = f"/ip4/{second_ip(lab, host) if at_another_ip else host.ip}/tcp/4001"
    with js_in(host, listen=[listen], autonat=True) as theirs:
        assert await theirs.do("verified") == []
        await theirs.do("connect", maddr=boot.maddrs[0])
        await theirs.do("untilVerified", maddr=listen)


# In one network


@pytest.mark.parametrize("we_were_first", [True, False])
async def test_js_and_we_find_each_other_by_mdns(lab: Lab, start: Callable[..., Peer], we_were_first: bool):
    here, there = lab.site("a", "port-restricted", hosts=2).hosts
    settings = {"nat.mdns": True}
    early = start(here, host_maddrs=LISTEN, settings=settings) if we_were_first else None
    with js_in(there, mdns=True) as theirs:
        ours = early or start(here, host_maddrs=LISTEN, settings=settings)
        assert await ask(ours, "until_connected", theirs.peer_id.base58, 40.0) == "direct"
        await theirs.do("untilFound", peer=ours.peer_id)
        assert await theirs.do("echo", peer=ours.peer_id, size=1000)


# From relayed to direct


async def test_js_in_public_that_came_through_our_relay_is_dialled_back(
    lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer]
):
    boot = bootstrap()
    ours = start(lab.site("a", "port-restricted").host, initial_peers=boot.maddrs, dht=False)
    host = lab.public("b")
    with js_in(host, announce=[f"/ip4/{host.ip}/tcp/4001"]) as theirs:
        await theirs.do("connect", maddr=circuit_of(ours))
        assert await ask(ours, "call_until", theirs.peer_id.base58, "direct", 10.0) < 10
        assert await theirs.do("echo", peer=ours.peer_id, size=MIB)


@pytest.fixture
def relays(lab: Lab, start: Callable[..., Peer]) -> list[Peer]:
    """go-libp2p punches holes once four peers see it at one public address, and reserves once it knows four relays."""
    settings = {"relay.serve": "always"}
    return [start(lab.public(f"relay{n}"), host_maddrs=LISTEN, dht=False, settings=settings) for n in range(4)]


async def test_p2pd_follows_when_we_punch(lab: Lab, start: Callable[..., Peer], relays: list[Peer]):
    ours = start(lab.site("a", "port-restricted").host, initial_peers=relays[0].maddrs, dht=False)
    async with go_peer(lab.site("b", "port-restricted").host, "-autonat") as theirs:
        for relay in relays:
            await theirs.connect(relay.maddrs[0])
        await ask(relays[0], "until_it_speaks", theirs.peer_id, DCUTR, 20.0)
        await theirs.connect(circuit_of(ours))
        assert await ask(ours, "call_until", theirs.peer_id, "direct", 20.0) < 20
        assert await theirs.echo(ours.peer_id, MIB)


async def test_we_follow_when_p2pd_punches(lab: Lab, start: Callable[..., Peer], relays: list[Peer]):
    ours = start(lab.site("a", "port-restricted").host, initial_peers=relays[0].maddrs, dht=False)
    trusted = ",".join(relay.maddrs[0] for relay in relays)
    options = ("-autonat", "-dhtClient", "-autoRelay", f"-trustedRelays={trusted}", "-forceReachabilityPrivate")
    async with go_peer(lab.site("b", "port-restricted").host, *options) as theirs:
        await ask(relays[0], "until_it_speaks", theirs.peer_id, DCUTR, 20.0)
        _, direct = await ask(ours, "until_direct", await theirs.circuit(20.0), 20.0)
        assert direct is not None
        assert await ask(ours, "call", theirs.peer_id, MIB) == "direct"
