"""Streams between us and js-libp2p over TCP, Noise and Yamux: both ways, on connections that either side dialled."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator

import pytest
import trio
from multiaddr import Multiaddr

from hivemind_p2p.errors import ProtocolNotSupported, StreamReset
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identify import IDENTIFY, PING
from hivemind_p2p.transport.identity import Identity
from tests.interop.foreign import ForeignPeer

ECHO, SUM, RESET, WAIT = (f"/test/{name}/1.0.0" for name in ("echo", "sum", "reset", "wait"))
MUCH = 2**26
CHUNK = 2**18


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)
    await stream.send_eof()


async def say_sum(stream: Stream) -> None:
    sum_ = hashlib.sha256()
    while data := await stream.receive_some():
        sum_.update(data)
    await stream.send_all(sum_.hexdigest().encode())


async def reset(stream: Stream) -> None:
    await stream.read_exactly(1)
    await stream.reset()


async def send_random(stream: Stream, size: int) -> str:
    """Send so many random bytes and end our half; what they were."""
    sum_ = hashlib.sha256()
    for start in range(0, size, CHUNK):
        data = os.urandom(min(CHUNK, size - start))
        sum_.update(data)
        await stream.send_all(data)
    await stream.send_eof()
    return sum_.hexdigest()


async def is_echoed(host: Host, js: ForeignPeer, size: int) -> bool:
    """Whether so many random bytes come back as they were."""
    received, sent = hashlib.sha256(), []

    async def send() -> None:
        sent.append(await send_random(stream, size))

    async with await host.open_stream(js.peer_id, ECHO) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while data := await stream.receive_some():
            received.update(data)
    return sent == [received.hexdigest()]


@pytest.fixture(params=["we dial", "js dials"])
async def host(request: pytest.FixtureRequest, js: ForeignPeer) -> AsyncIterator[Host]:
    """One of ours, with a single connection to js-libp2p's."""
    async with Host(Identity.generate(), host_maddrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]) as host:
        for protocol, handler in ((ECHO, echo), (SUM, say_sum), (RESET, reset)):
            host.set_stream_handler(protocol, handler)
        if request.param == "we dial":
            await host.connect(js.maddr)
        else:
            assert await js.do("connect", maddr=str(host.visible_maddrs[0])) == "direct"
        [connection] = host.connections(js.peer_id)
        assert connection.outbound is (request.param == "we dial")
        await connection.identified.wait()
        await ping(host, js)  # it knows of the connection a moment later than we do; once it answers on it, it does
        yield host


async def ping(host: Host, js: ForeignPeer) -> None:
    async with await host.open_stream(js.peer_id, PING) as stream:
        for _ in range(2):
            data = os.urandom(32)
            await stream.send_all(data)
            assert await stream.read_exactly(32) == data


async def test_both_say_who_they_are(host: Host, js: ForeignPeer):
    [connection] = host.connections(js.peer_id)
    said = connection.description
    assert said.agent.startswith("js-libp2p/")
    assert {IDENTIFY, PING, ECHO} <= said.protocols
    assert js.maddr in [maddr.encapsulate(f"/p2p/{js.peer_id}") for maddr in said.maddrs]
    ours = await js.do("identify", peer=host.peer_id.base58)
    assert ours["agent"].startswith("hivemind-p2p")
    assert {IDENTIFY, PING, ECHO} <= set(ours["protocols"])
    assert ours["maddrs"] == [str(maddr) for maddr in host.listen_maddrs]
    assert str(said.observed).startswith("/ip4/127.0.0.1/tcp/")
    if connection.outbound:
        assert ours["observed"] == str(js.maddr).rpartition("/p2p/")[0]
    else:
        assert said.observed == host.listen_maddrs[0]
        assert ours["observed"] == str(connection.remote_maddr)


async def test_both_are_pinged(host: Host, js: ForeignPeer):
    await ping(host, js)
    assert await js.do("ping", peer=host.peer_id.base58) >= 0


async def test_much_goes_there_and_back(host: Host, js: ForeignPeer):
    with trio.fail_after(60):
        assert await is_echoed(host, js, MUCH)


async def test_much_comes_and_goes_back(host: Host, js: ForeignPeer):
    assert await js.do("echo", peer=host.peer_id.base58, size=MUCH)


async def test_many_streams_at_once(host: Host, js: ForeignPeer):
    echoed = []

    async def one_of_ours(size: int) -> None:
        echoed.append(await is_echoed(host, js, size))

    async def all_of_theirs() -> None:
        echoed.append(await js.do("echoMany", peer=host.peer_id.base58, streams=100, size=10_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(all_of_theirs)
        for number in range(100):
            nursery.start_soon(one_of_ours, 1000 * number)
    assert sorted(echoed) == [*(100 * [True]), 100]


async def test_a_half_that_has_ended_leaves_the_other(host: Host, js: ForeignPeer):
    async with await host.open_stream(js.peer_id, SUM) as stream:
        sum_ = await send_random(stream, 2**20)
        assert (await stream.read_exactly(64)).decode() == sum_
        assert await stream.receive_some() == b""
    assert await js.do("sum", peer=host.peer_id.base58, size=2**20)


async def test_a_reset_is_seen_by_the_other_side(host: Host, js: ForeignPeer):
    stream = await host.open_stream(js.peer_id, RESET)
    await stream.send_all(b"!")
    with pytest.raises(StreamReset):
        await stream.receive_some()
    assert await js.do("reset", peer=host.peer_id.base58) == "StreamResetError"
    stream = await host.open_stream(js.peer_id, WAIT)
    await stream.read_exactly(1)
    await stream.reset()
    assert await js.do("waitUntilEnded") == "StreamResetError"
    await ping(host, js)


async def test_what_is_not_served_is_said(host: Host, js: ForeignPeer):
    with pytest.raises(ProtocolNotSupported):
        await host.open_stream(js.peer_id, "/test/nothing/1.0.0")
    with pytest.raises(RuntimeError, match="UnsupportedProtocolError"):
        await js.do("open", peer=host.peer_id.base58, protocol="/test/nothing/1.0.0")


async def test_a_connection_that_js_closes_is_gone(host: Host, js: ForeignPeer):
    [connection] = host.connections(js.peer_id)
    await js.do("hangUp", peer=host.peer_id.base58)
    with trio.fail_after(10):
        await connection.ended.wait()
    assert not host.connections(js.peer_id)
