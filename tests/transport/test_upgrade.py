"""What travels with the handshake, and peers that speak something else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import ConnectionLost, ProtocolNotSupported
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.muxer import MuxedStream
from hivemind_p2p.transport.negotiate import GREETING, line
from hivemind_p2p.transport.noise.handshake import Noise
from hivemind_p2p.transport.raw import RawConnection
from hivemind_p2p.transport.upgrade import YAMUX, Upgrader, libp2p_key_pair

SERVER = Identity.generate()


@asynccontextmanager
async def one_connection() -> AsyncIterator[tuple[RawConnection, RawConnection]]:
    """The two ends of a TCP connection."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        ours = await trio.open_tcp_stream(*listener.socket.getsockname()[:2])
        async with ours, await listener.accept() as theirs:
            yield RawConnection(ours, None, initiator=True), RawConnection(theirs, None, initiator=False)


def client() -> Upgrader:
    return Upgrader(Identity.generate(), TransportSettings())


async def test_a_client_says_all_it_can_before_it_waits():
    async with one_connection() as (ours, theirs), trio.open_nursery() as nursery:
        nursery.start_soon(client().outbound, ours, SERVER.peer_id)
        with trio.fail_after(10):
            said = await theirs.read(len(line(GREETING) + line("/noise")) + 2 + 32)
        assert said.startswith(line(GREETING) + line("/noise") + b"\0\x20")
        nursery.cancel_scope.cancel()


async def test_who_does_not_speak_noise_is_named():
    async with one_connection() as (ours, theirs):
        await theirs.write(line(GREETING) + line("na"))
        with trio.fail_after(10), pytest.raises(ProtocolNotSupported, match="/noise"):
            await client().outbound(ours, SERVER.peer_id)


@pytest.mark.parametrize(
    ("answer", "why"),
    [(line(GREETING) + line("na"), "does not speak '/yamux/1.0.0'"), (b"\0", "does not speak multistream")],
)
async def test_a_peer_without_yamux_is_a_connection_lost(answer: bytes, why: str):
    async def serve(raw: RawConnection) -> None:
        channel, _ = await Noise(libp2p_key_pair(SERVER)).inbound(raw)
        await channel.send_all(answer)

    async with one_connection() as (ours, theirs), trio.open_nursery() as nursery:
        nursery.start_soon(serve, theirs)
        muxer = await client().outbound(ours, SERVER.peer_id)
        with trio.fail_after(10):
            await muxer.run(pytest.fail)
        with pytest.raises(ConnectionLost, match=why):
            await muxer.open_stream()


@pytest.mark.parametrize("together", [True, False])
async def test_the_answer_to_yamux_may_come_alone_in_pieces_or_with_more(together: bool):
    async def serve(raw: RawConnection) -> None:
        channel, _ = await Noise(libp2p_key_pair(SERVER)).inbound(raw)
        greeting, agreed = line(GREETING), line(YAMUX)
        opened = bytes.fromhex("00 00 0001 00000002 00000000")  # window update, SYN, stream 2
        for data in [greeting + agreed + opened] if together else [greeting[:5], greeting[5:], agreed, opened]:
            await channel.send_all(data)

    async with one_connection() as (ours, theirs), trio.open_nursery() as nursery:
        nursery.start_soon(serve, theirs)
        muxer = await client().outbound(ours, SERVER.peer_id)
        arrive, arrived = trio.open_memory_channel[MuxedStream](1)
        nursery.start_soon(muxer.run, arrive.send_nowait)
        with trio.fail_after(10):
            assert (await arrived.receive()).peer_id == SERVER.peer_id
        nursery.cancel_scope.cancel()
