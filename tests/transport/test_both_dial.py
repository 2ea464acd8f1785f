"""Two peers that dial each other and get one connection, and dials from other ports than the one listened on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from libp2p.io.exceptions import ConnectionClosedError
from multiaddr import Multiaddr

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import TransportError
from hivemind_p2p.transport.addresses import split_peer
from hivemind_p2p.transport.dialer import WrongPeer
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.muxer import MuxedStream
from hivemind_p2p.transport.raw import RawConnection
from hivemind_p2p.transport.tcp import TCPTransport
from hivemind_p2p.transport.upgrade import Upgrader
from hivemind_p2p.wire.peer_id import PeerID
from tests.transport.hosts import two_hosts

SETTINGS = TransportSettings()


@asynccontextmanager
async def one_connection() -> AsyncIterator[tuple[RawConnection, RawConnection]]:
    """The two ends of a TCP connection."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        ours = await trio.open_tcp_stream(*listener.socket.getsockname()[:2])
        async with ours, await listener.accept() as theirs:
            yield RawConnection(ours, None, initiator=True), RawConnection(theirs, None, initiator=True)


@pytest.mark.parametrize("late", [False, True])
async def test_of_two_clients_the_one_with_the_smaller_id_stays_the_client(late: bool):
    one, other = sorted((Identity.generate() for _ in range(2)), key=lambda identity: identity.peer_id)
    ended = {}

    async def secure(identity: Identity, raw: RawConnection, peer_id: PeerID, delay: float = 0) -> None:
        await trio.sleep(delay)
        ended[identity.peer_id] = await Upgrader(identity, SETTINGS).outbound(raw, peer_id)

    async with one_connection() as (ours, theirs):
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(secure, one, ours, other.peer_id, 0.05 if late else 0)
                nursery.start_soon(secure, other, theirs, one.peer_id, 0 if late else 0.05)
        smaller, larger = ended[one.peer_id], ended[other.peer_id]
        assert (smaller.initiator, larger.initiator) == (True, False)
        assert (smaller.peer_id, larger.peer_id) == (other.peer_id, one.peer_id)
        async with trio.open_nursery() as nursery:
            arrive, arrived = trio.open_memory_channel[MuxedStream](1)
            nursery.start_soon(smaller.run, arrive.send_nowait)
            nursery.start_soon(larger.run, arrive.send_nowait)
            for here, there in ((smaller, larger), (larger, smaller)):
                stream = await here.open_stream()
                await stream.send_all(b"hello")
                theirs_of_it = await arrived.receive()
                assert theirs_of_it.peer_id == there.peer_id
                assert await theirs_of_it.read_exactly(5) == b"hello"
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("speaks", [True, False])
async def test_the_server_of_a_punch_takes_the_role_that_is_left_on_what_it_accepts(speaks: bool):
    async with two_hosts() as (server, other):
        maddr = split_peer(server.visible_maddrs[0])[0]
        with server.punching(other.peer_id, is_client=False) as punch:
            punch.dial([Multiaddr("/ip4/127.0.0.1/tcp/1")])
            punch.both_dial, punch.patience = True, 5.0 if speaks else 0.1
            raw = await TCPTransport().dial(maddr)
            assert isinstance(raw, RawConnection)
            with trio.fail_after(30):
                await other.adopt(raw, server.peer_id, as_client=speaks)
                await punch.arrived.wait()
        [connection] = server.connections(other.peer_id)
        assert connection.outbound is not speaks


async def test_a_client_that_becomes_the_server_still_wants_its_own_peer():
    impostor, wanted, us = sorted((Identity.generate() for _ in range(3)), key=lambda identity: identity.peer_id)
    async with one_connection() as (ours, theirs), trio.open_nursery() as nursery:
        nursery.start_soon(_try, Upgrader(impostor, SETTINGS), theirs, us.peer_id)
        with pytest.raises(WrongPeer, match=f"somebody else lives there: {impostor.peer_id}"):
            await Upgrader(us, SETTINGS).outbound(ours, wanted.peer_id)


async def _try(upgrader: Upgrader, raw: RawConnection, peer_id: PeerID) -> None:
    with suppress(TransportError):
        await upgrader.outbound(raw, peer_id)


async def test_a_handshake_that_fails_resets_its_connection_so_that_no_address_stays_in_use():
    async with one_connection() as (ours, theirs):
        await theirs.send_all(b"\0")
        with pytest.raises(TransportError, match="multistream"):
            await Upgrader(Identity.generate(), SETTINGS).outbound(ours, Identity.generate().peer_id)
        await theirs.receive_some()
        with trio.fail_after(10), pytest.raises(ConnectionClosedError, match="reset by peer"):
            await theirs.receive_some()


@pytest.mark.parametrize("announces_relays", [True, False])
async def test_who_announces_relays_is_dialled_from_another_port_than_we_listen_on(announces_relays: bool):
    async with two_hosts() as (server, _), Host(Identity.generate()) as client:
        relay = Identity.generate().peer_id
        circuit = Multiaddr(f"/ip4/127.0.0.1/tcp/1/p2p/{relay}/p2p-circuit")
        client.add_addresses(server.peer_id, [circuit] if announces_relays else [])
        await client.connect(server.visible_maddrs[0])
        [connection] = client.connections(server.peer_id)
        assert connection.aside is announces_relays
