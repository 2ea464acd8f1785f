"""Reaching a peer over real sockets: dead addresses, silent ones, wrong ones, and many at once."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import DialError, HivemindError, NodeClosed
from hivemind_p2p.transport.addresses import split_peer, with_peer
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.tcp import TCPTransport
from tests.transport.hosts import LOOPBACK, roundtrip, two_hosts

QUICK = TransportSettings(dial_timeout=0.3)


def has_ipv6() -> bool:
    return bool(Path("/proc/net/if_inet6").read_text())


async def closed_port() -> int:
    """A port on loopback that nobody listens on."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    return port


async def test_connecting_takes_milliseconds(capsys):
    async with two_hosts() as (server, client):
        started = time.perf_counter()
        assert await client.connect(server.visible_maddrs[0]) == server.peer_id
        elapsed = time.perf_counter() - started
        with capsys.disabled():
            print(f"\nloopback, dial to connected: {1000 * elapsed:.1f} ms")
        [connection] = client.connections(server.peer_id)
        assert connection.outbound
        assert connection.remote_maddr == split_peer(server.visible_maddrs[0])[0]
        assert str(connection.remote_maddr) in repr(connection)


async def test_connecting_twice_keeps_the_connection():
    async with two_hosts() as (server, client):
        await client.connect(server.visible_maddrs[0])
        [first] = client.connections()
        await client.connect(server.visible_maddrs[0])
        assert client.connections() == [first]


async def test_many_who_dial_one_peer_at_once_share_one_attempt():
    async with two_hosts() as (server, client):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(client.connect, server.visible_maddrs[0])
                nursery.start_soon(roundtrip, client, server)
        assert len(client.connections()) == len(server.connections()) == 1


async def test_a_dead_address_does_not_hide_a_good_one():
    async with two_hosts() as (server, _), Host(Identity.generate()) as client:
        good = split_peer(server.visible_maddrs[0])[0]
        dead = Multiaddr(f"/ip4/127.0.0.1/tcp/{await closed_port()}")
        client.add_addresses(server.peer_id, [dead, good])
        assert await roundtrip(client, server) == b"ping"
        assert client.addresses(server.peer_id)[0] == good


async def test_a_silent_address_does_not_hide_a_good_one():
    async with two_hosts() as (server, _), Host(Identity.generate()) as client, trio.open_nursery() as nursery:
        silent = await silence(nursery)
        good = split_peer(server.visible_maddrs[0])[0]
        client.add_addresses(server.peer_id, [silent, good])
        with trio.fail_after(5):  # the stagger, not the timeout of an attempt
            assert await roundtrip(client, server) == b"ping"
        nursery.cancel_scope.cancel()


async def test_a_peer_that_accepts_and_says_nothing_is_given_up():
    peer_id = Identity.generate().peer_id
    async with Host(Identity.generate(), settings=QUICK) as client, trio.open_nursery() as nursery:
        silent = await silence(nursery)
        with trio.fail_after(5), pytest.raises(DialError, match=r"no answer within 0\.3 s") as caught:
            await client.connect(with_peer(silent, peer_id))
        assert caught.value.attempts == ((str(silent), "no answer within 0.3 s"),)
        assert caught.value.peer_id == peer_id.base58
        nursery.cancel_scope.cancel()


async def test_every_attempt_says_why_it_failed_and_is_left_alone_for_a_while():
    peer_id, port = Identity.generate().peer_id, await closed_port()
    async with Host(Identity.generate()) as client:
        client.add_addresses(peer_id, [Multiaddr(f"/ip4/127.0.0.{last}/tcp/{port}") for last in (1, 2)])
        with pytest.raises(DialError) as caught:
            await client.open_stream(peer_id, "/any")
        assert [reason for _, reason in caught.value.attempts] == ["connection refused"] * 2
        with pytest.raises(DialError, match=r"not tried again for 0\.\d s: connection refused"):
            await client.open_stream(peer_id, "/any")


async def test_an_explicit_address_is_tried_even_when_it_failed_a_moment_ago():
    async with two_hosts() as (server, client):
        bare = split_peer(server.visible_maddrs[0])[0]
        client._book.failed(server.peer_id, bare, "connection refused", trio.current_time())
        await client.connect(server.visible_maddrs[0])


async def test_somebody_else_at_the_address_is_named():
    async with two_hosts() as (server, client):
        expected = Identity.generate().peer_id
        address = with_peer(server.visible_maddrs[0], expected)
        with pytest.raises(DialError, match=f"somebody else lives there: {server.peer_id}"):
            await client.connect(address)
        assert client.addresses(expected) == []
        assert await roundtrip(client, server) == b"ping"


async def test_addresses_that_cannot_be_meant_are_refused_with_advice():
    async with two_hosts() as (server, client):
        for maddr, why in [
            (split_peer(server.visible_maddrs[0])[0], "append /p2p/"),
            (with_peer(Multiaddr("/ip4/127.0.0.1/tcp/1"), client.peer_id), "this peer itself"),
            (with_peer(Multiaddr("/ip4/0.0.0.0/tcp/1"), Identity.generate().peer_id), "to listen on"),
            (with_peer(Multiaddr("/ip4/127.0.0.1/udp/1/quic-v1"), Identity.generate().peer_id), "not a TCP address"),
        ]:
            with pytest.raises(DialError, match=why):
                await client.connect(maddr)
        with pytest.raises(DialError, match="this peer itself"):
            await client.open_stream(client.peer_id, "/any")
        with pytest.raises(DialError, match="none of its addresses is known"):
            await client.open_stream(Identity.generate().peer_id, "/any")


async def test_a_name_is_resolved():
    async with two_hosts() as (server, _), Host(Identity.generate()) as client:
        port = split_peer(server.visible_maddrs[0])[0].value_for_protocol("tcp")
        for kind in ("dns", "dns4"):
            await client.connect(Multiaddr(f"/{kind}/localhost/tcp/{port}/p2p/{server.peer_id}"))
            [connection] = client.connections()
            await connection.aclose()
        unknown = Multiaddr(f"/dns4/no-such-host.invalid/tcp/{port}/p2p/{Identity.generate().peer_id}")
        with pytest.raises(DialError, match="cannot be resolved"):
            await client.connect(unknown)


async def test_names_that_nobody_answers_for_leave_threads_to_the_rest_of_the_program(monkeypatch):
    answered = threading.Event()

    def unanswered(*asked: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            answered.wait(60)
        raise socket.gaierror(socket.EAI_NONAME, "nobody knows")

    monkeypatch.setattr(socket, "getaddrinfo", unanswered)
    try:
        with trio.move_on_after(0.3):
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(TCPTransport().dial, Multiaddr(f"/dns4/{number}.example.com/tcp/1"))
        with trio.fail_after(20):
            assert await trio.to_thread.run_sync(threading.active_count) < 50
    finally:
        answered.set()


async def test_ipv6_peers_have_addresses():
    assert has_ipv6(), "this machine has no IPv6, and the test needs it"
    async with two_hosts(listen=[Multiaddr("/ip6/::1/tcp/0"), LOOPBACK]) as (server, client):
        [first, second] = server.visible_maddrs
        assert str(first).startswith("/ip6/::1/tcp/")
        assert str(second).startswith("/ip4/127.0.0.1/tcp/")
        await client.connect(first)
        assert await roundtrip(client, server) == b"ping"
        [accepted] = server.connections(client.peer_id)
        assert str(accepted.remote_maddr).startswith("/ip6/::1/tcp/")


async def test_the_resolver_is_asked_when_nothing_known_answers():
    async with two_hosts() as (server, _), Host(Identity.generate()) as client:
        asked = []

        async def resolver(peer_id):
            asked.append(peer_id)
            return [split_peer(maddr)[0] for maddr in server.visible_maddrs]

        client.set_peer_resolver(resolver)
        client.add_addresses(server.peer_id, [Multiaddr(f"/ip4/127.0.0.1/tcp/{await closed_port()}")])
        assert await roundtrip(client, server) == b"ping"
        assert asked == [server.peer_id]


async def test_a_resolver_that_fails_is_one_reason_of_the_failure():
    async def resolver(peer_id):
        raise HivemindError("nobody is there to ask")

    async with Host(Identity.generate()) as client:
        client.set_peer_resolver(resolver)
        with pytest.raises(DialError, match="nobody is there to ask"):
            await client.open_stream(Identity.generate().peer_id, "/any")


async def test_one_who_gives_up_takes_nothing_from_the_others():
    async with two_hosts() as (server, client), trio.open_nursery() as nursery:

        async def impatient() -> None:
            with trio.move_on_after(0):
                await client.connect(server.visible_maddrs[0])

        nursery.start_soon(impatient)
        nursery.start_soon(client.connect, server.visible_maddrs[0])


async def test_a_host_that_is_not_running_says_so():
    host = Host(Identity.generate())
    assert "not running" in repr(host)
    with pytest.raises(NodeClosed, match="async with"):
        await host.open_stream(Identity.generate().peer_id, "/any")
    async with host:
        pass
    with pytest.raises(NodeClosed, match="entering one twice"):
        await host.__aenter__()


async def silence(nursery: trio.Nursery) -> Multiaddr:
    """The address of a server that accepts and says nothing."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def say_nothing(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    nursery.start_soon(trio.serve_listeners, say_nothing, [listener])
    return Multiaddr(f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}")
