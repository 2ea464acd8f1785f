"""A process whose file descriptors are all in use: nothing ends, nothing is forgotten, and all goes on afterwards."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from multiaddr import Multiaddr

from hivemind_p2p.errors import DialError, TransportError
from hivemind_p2p.nat.nat_pmp import NATPMP
from hivemind_p2p.nat.roaming import Roaming
from hivemind_p2p.nat.surroundings import look_around
from hivemind_p2p.nat.trace import private_hops
from hivemind_p2p.transport.addresses import interface_ips, interface_networks
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identity import Identity
from tests.transport.hosts import ECHO, LOOPBACK, in_use, two_hosts


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Inside, no file and no socket can be opened by this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(0)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_addresses_of_this_machine_are_those_of_before():
    ips, networks = interface_ips(), interface_networks()
    with no_descriptors():
        assert (interface_ips(), interface_networks()) == (ips, networks)


async def test_routers_are_not_asked():
    with no_descriptors():
        with pytest.raises(TransportError, match="Too many open files"):
            await NATPMP("127.0.0.1").map(1, 1, 1)
        assert await private_hops("127.0.0.1") == []


async def test_the_network_is_the_same_as_before(autojump_clock):
    here = look_around()
    with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
        look_around()
    blind = False

    def look() -> object:
        if blind:
            raise OSError("too many open files")
        return here

    async with Host(Identity.generate(), host_maddrs=[LOOPBACK]) as host, trio.open_nursery() as nursery:
        roaming = Roaming(host, lambda: None, lambda: None, look)
        nursery.start_soon(roaming.run)
        await trio.sleep(5)
        blind = True
        await trio.sleep(60)
        blind = False
        await trio.sleep(60)
        assert roaming.changes == 0
        nursery.cancel_scope.cancel()


async def test_a_host_dials_in_vain_and_takes_connections_again_afterwards():
    async with two_hosts() as (server, client):
        stream = await in_use(client, server)
        nobody = Multiaddr(f"/ip4/127.0.0.1/tcp/1/p2p/{Identity.generate().peer_id}")
        with no_descriptors():
            with pytest.raises(DialError, match="too many open files"):
                await client.connect(nobody)
            await stream.send_all(b"still here")
            assert await stream.read_exactly(10) == b"still here"
        async with Host(Identity.generate()) as other:
            await other.connect(server.visible_maddrs[0])
            async with await other.open_stream(server.peer_id, ECHO) as echoed:
                await echoed.send_all(b"!")
                assert await echoed.read_exactly(1) == b"!"
