"""Listening: what cannot be listened on, what is announced, whom we let in."""

from __future__ import annotations

import logging
import socket
from contextlib import suppress

import pytest
import trio
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID
from libp2p.stream_muxer.mplex.mplex import MPLEX_PROTOCOL_ID
from multiaddr import Multiaddr

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import ConfigError, ListenError, ProtocolNotSupported, StreamReset, TransportError
from hivemind_p2p.transport import negotiate
from hivemind_p2p.transport.addresses import endpoint_of, split_peer
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.raw import RawConnection
from hivemind_p2p.transport.tcp import TCPTransport
from hivemind_p2p.transport.yamux import frames
from tests.transport.hosts import ECHO, LOOPBACK, at_rest, echo, in_use, roundtrip, two_hosts, until


async def test_a_port_in_use_is_named_and_the_host_can_be_given_up():
    async with Host(Identity.generate(), host_maddrs=[LOOPBACK]) as first:
        taken = split_peer(first.visible_maddrs[0])[0]
        with pytest.raises(ListenError, match=f"{taken}.*another program listens there"):
            async with Host(Identity.generate(), host_maddrs=[LOOPBACK, taken]):
                pass


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("/ip4/203.0.113.77/tcp/0", "not one of this machine"),
        ("/ip4/127.0.0.1/udp/0/quic-v1", "should look like"),
        ("/dns4/localhost/tcp/0", "should look like"),
        ("/ip4/127.0.0.1/tcp/4001/ws", "should look like"),
    ],
)
async def test_an_address_that_cannot_be_listened_on_says_what_to_do(text, advice):
    with pytest.raises(ListenError, match=advice):
        async with Host(Identity.generate(), host_maddrs=[Multiaddr(text)]):
            pass


async def test_listening_everywhere_announces_addresses_that_can_be_dialled():
    async with Host(Identity.generate(), host_maddrs=[Multiaddr("/ip4/0.0.0.0/tcp/0")]) as host:
        host.set_stream_handler(ECHO, echo)
        assert host.visible_maddrs
        for maddr in host.visible_maddrs:
            bare, peer_id = split_peer(maddr)
            assert peer_id == host.peer_id
            assert not endpoint_of(bare).ip.is_unspecified
            async with Host(Identity.generate()) as client:
                await client.connect(maddr)
                assert await roundtrip(client, host) == b"ping"


async def test_what_is_given_to_announce_is_announced():
    announced = Multiaddr("/dns4/example.org/tcp/31337")
    async with Host(Identity.generate(), host_maddrs=[LOOPBACK], announce_maddrs=[announced]) as host:
        assert [str(maddr) for maddr in host.visible_maddrs] == [f"{announced}/p2p/{host.peer_id}"]


async def test_a_host_that_only_dials_announces_nothing():
    async with Host(Identity.generate()) as host:
        assert list(host.visible_maddrs) == []


async def test_both_families_can_be_listened_on_with_one_port():
    async with Host(Identity.generate(), host_maddrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]) as first:
        port = endpoint_of(split_peer(first.visible_maddrs[0])[0]).port
        both = [Multiaddr(f"/ip6/::1/tcp/{port}")]
        async with Host(Identity.generate(), host_maddrs=both) as second:
            assert len(second.visible_maddrs) == 1


async def dial_raw(host: Host) -> RawConnection:
    raw = await TCPTransport().dial(split_peer(host.visible_maddrs[0])[0])
    assert isinstance(raw, RawConnection)
    return raw


async def test_the_kernel_takes_a_frame_whole_and_not_much_more():
    async with two_hosts() as (server, client):
        assert await roundtrip(client, server) == b"ping"
        for host in (server, client):
            link = host.connections()[0]._muxer._channel._link
            unsent = link._stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
            assert frames.MAX_PAYLOAD <= unsent <= 2**20


async def gone(raw: RawConnection) -> None:
    """Wait until the other side has closed the connection."""
    with trio.fail_after(5), suppress(trio.BrokenResourceError):
        async for _ in raw.stream:
            pass


@pytest.mark.parametrize("protocol", [PLAINTEXT_PROTOCOL_ID, "/secio/1.0.0", "/tls/1.0.0", MPLEX_PROTOCOL_ID])
async def test_nothing_but_noise_is_accepted(protocol):
    async with two_hosts() as (server, client):
        raw = await dial_raw(server)
        with pytest.raises(ProtocolNotSupported):
            await negotiate.ask(raw, protocol)
        await raw.close()
        assert await roundtrip(client, server) == b"ping"


HALF_A_HANDSHAKE = b"\x13/multistream/1.0.0\n\x07/noise\n" + b"\x00\x20" * 99


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(300), b"\xff" * 300, HALF_A_HANDSHAKE])
async def test_garbage_costs_its_connection_and_nothing_else(garbage):
    async with two_hosts(TransportSettings(handshake_timeout=0.5)) as (server, client):
        raw = await dial_raw(server)
        await raw.write(garbage)
        await gone(raw)
        await raw.close()
        assert await roundtrip(client, server) == b"ping"


async def test_one_who_says_nothing_is_shown_the_door():
    async with two_hosts(TransportSettings(handshake_timeout=0.2)) as (server, client):
        raw = await dial_raw(server)
        await gone(raw)
        await raw.close()
        assert await roundtrip(client, server) == b"ping"


async def test_handshakes_at_once_are_bounded():
    async with two_hosts(TransportSettings(max_handshakes=2)) as (server, client):
        silent = [await dial_raw(server) for _ in range(2)]
        await until(lambda: len(server._handshakes) == 2)
        refused = await dial_raw(server)
        await gone(refused)
        for raw in [*silent, refused]:
            await raw.close()
        await until(lambda: len(server._handshakes) == 0)
        assert await roundtrip(client, server) == b"ping"


async def test_streams_of_one_peer_are_bounded():
    async with two_hosts(TransportSettings(max_streams_in=3)) as (server, client):
        await client.connect(server.visible_maddrs[0])
        await at_rest(client, server)
        held = [await in_use(client, server) for _ in range(3)]
        with pytest.raises(StreamReset):
            await in_use(client, server)
        await held[0].aclose()
        await until(lambda: server.connections()[0]._muxer.stream_count < 3)
        assert await roundtrip(client, server) == b"ping"


async def test_handlers_that_outlive_their_streams_are_bounded(caplog):
    stop = trio.Event()

    async def outlive(stream: Stream) -> None:
        await stream.send_all(await stream.read_exactly(1))
        await stop.wait()

    async with two_hosts(TransportSettings(max_streams_in=3)) as (server, client):
        await client.connect(server.visible_maddrs[0])
        await client.connections()[0].identified.wait()
        server.set_stream_handler(ECHO, outlive)
        for _ in range(6):
            await (await in_use(client, server)).reset()
        for _ in range(2):
            with pytest.raises(StreamReset):
                await in_use(client, server)
        assert caplog.text.count("faster than their 6 handlers end") == 1
        stop.set()
        server.set_stream_handler(ECHO, echo)


async def test_opening_more_streams_than_we_may_hold_waits_for_one_to_close(caplog):
    async with two_hosts(TransportSettings(max_streams_out=2)) as (server, client):
        await client.connect(server.visible_maddrs[0])
        await at_rest(client, server)  # identify has used a stream and let it go
        held = [await client.open_stream(server.peer_id, ECHO) for _ in range(2)]
        with trio.move_on_after(0.05) as scope:
            await client.open_stream(server.peer_id, ECHO)
        assert scope.cancelled_caught
        assert "max_streams_out" in caplog.text
        await held[0].aclose()
        with trio.fail_after(5):
            assert await roundtrip(client, server) == b"ping"


async def test_a_new_connection_takes_the_place_of_an_idle_one_but_not_of_one_in_use():
    settings = TransportSettings(max_connections=1)
    async with two_hosts(settings) as (server, first), Host(Identity.generate()) as second:
        second.add_addresses(server.peer_id, server.visible_maddrs)
        assert await roundtrip(first, server) == b"ping"
        await at_rest(first, server)
        held: Stream = await second.open_stream(server.peer_id, ECHO)
        assert [connection.peer_id for connection in server.connections()] == [second.peer_id]
        async with Host(Identity.generate(), settings=TransportSettings(dial_timeout=0.5)) as third:
            third.add_addresses(server.peer_id, server.visible_maddrs)
            with pytest.raises(TransportError, match=r"cannot reach|is gone"):
                await third.open_stream(server.peer_id, ECHO)
        await held.send_all(b"still mine")
        assert await held.read_exactly(10) == b"still mine"


async def test_libp2p_is_kept_quiet_unless_the_program_wants_it(caplog):
    logger = logging.getLogger("libp2p")
    before = logger.level
    try:
        logger.setLevel(logging.NOTSET)
        async with Host(Identity.generate(), settings=TransportSettings(quiet_libp2p=False)):
            assert logger.level == logging.NOTSET
        async with Host(Identity.generate()):
            assert logger.level == logging.CRITICAL
        logger.setLevel(logging.INFO)
        async with Host(Identity.generate()):
            assert logger.level == logging.INFO
    finally:
        logger.setLevel(before)


async def test_an_exception_in_the_body_comes_out_as_it_is():
    async def body() -> None:
        async with two_hosts() as (server, client):
            await roundtrip(client, server)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await body()


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match=r"transport\.dial_timeout must be above zero"):
        TransportSettings(dial_timeout=0)
    with pytest.raises(ConfigError, match=r"at most transport\.max_unread"):
        TransportSettings(max_receive_window=2**20, max_unread=2**19)
