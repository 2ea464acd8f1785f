"""Which connections end when the network changes, and which when a peer connects anew."""

from __future__ import annotations

import pytest
import trio

from hivemind_p2p.errors import ConnectionLost
from hivemind_p2p.transport import weeding
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.weeding import weed
from tests.transport.hosts import in_use, roundtrip, two_hosts, until


@pytest.mark.parametrize("ip", ["127.0.0.1", "127.9.9.9", "fe80::1", None])
async def test_who_answers_from_an_address_that_may_be_ours_is_kept(ip: str | None):
    async with two_hosts() as (server, client):
        assert await roundtrip(client, server) == b"ping"
        [connection] = client.connections()
        assert connection.local_ip == "127.0.0.1"
        connection.local_ip = ip
        assert await weed([connection], {"192.0.2.1"}) == []
        assert not connection.closed
        assert await roundtrip(client, server) == b"ping"


async def test_one_from_an_address_that_is_gone_ends_at_once_and_its_calls_are_told_why():
    async with two_hosts() as (server, client):
        stream = await in_use(client, server)
        [connection] = client.connections()
        connection.local_ip = "203.0.113.9"
        assert await weed([connection], {"192.0.2.1"}) == [connection]
        with pytest.raises(Exception, match=r"network changed: it has no address 203\.0\.113\.9 any more"):
            await stream.read_exactly(1)
        await connection.ended.wait()
        assert await roundtrip(client, server) == b"ping", "by a new one"


async def test_one_that_is_silent_ends_when_its_peer_connects_anew(monkeypatch):
    monkeypatch.setattr(weeding, "_PATIENCE_WHEN_BUSY", 0.3)
    identity = Identity.generate()
    async with two_hosts() as (server, _), Host(identity) as before:
        before.add_addresses(server.peer_id, server.visible_maddrs)
        held = await in_use(before, server)
        [old] = server.connections(before.peer_id)
        old._muxer._channel._link.send_now = lambda data: len(data)  # what is sent is lost on the way
        async with Host(identity) as now:
            now.add_addresses(server.peer_id, server.visible_maddrs)
            assert await roundtrip(now, server) == b"ping"
            with trio.fail_after(10):
                await old.ended.wait()
            await until(lambda: len(server.connections(now.peer_id)) == 1)
            assert await roundtrip(now, server) == b"ping"
        await held.reset()


async def test_one_that_lives_is_kept_when_its_peer_connects_anew():
    identity = Identity.generate()
    async with two_hosts() as (server, _), Host(identity) as one, Host(identity) as other:
        for host in (one, other):
            host.add_addresses(server.peer_id, server.visible_maddrs)
        held = await in_use(one, server)
        await in_use(other, server)
        await until(lambda: not any(each.doubted for each in server.connections(one.peer_id)))
        assert len(server.connections(one.peer_id)) == 2
        await held.send_all(b"!")
        assert await held.read_exactly(1) == b"!"


async def test_a_connection_that_was_given_up_leaves_nothing_behind():
    """The system would go on to send what the peer does not take, and keep the pair of addresses as long."""
    async with two_hosts() as (server, client):
        await in_use(client, server)
        [ours], [theirs] = client.connections(), server.connections()
        ours.give_up("it is known to be dead")
        with trio.fail_after(10):
            await theirs.ended.wait()
        with pytest.raises(ConnectionLost, match="onnection reset by peer"):
            theirs._muxer.check()
