"""Links over sockets and over streams."""

from __future__ import annotations

import socket

import pytest
import trio

from hivemind_p2p.transport.link import SocketLink, StreamLink, link_over


async def sockets(host: str = "127.0.0.1") -> tuple[SocketLink, trio.SocketStream]:
    [listener] = await trio.open_tcp_listeners(0, host=host)
    async with listener:
        ours = await trio.open_tcp_stream(*listener.socket.getsockname()[:2])
        link = link_over(ours)
        assert isinstance(link, SocketLink)
        return link, await listener.accept()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_what_came_follows_its_head(host):
    link, peer = await sockets(host)
    await peer.send_all(b"body")
    assert bytes(await link.receive(b"head and ")) == b"head and body"
    await peer.send_all(b"more")
    assert bytes(await link.receive(b"")) == b"more"
    await peer.aclose()
    assert bytes(await link.receive(b"rest")) == b"rest"
    await link.aclose()


async def test_many_links_share_one_buffer_without_mixing(autojump_clock):
    pairs = [await sockets() for _ in range(3)]
    got = []

    async def receive(number: int, link: SocketLink) -> None:
        got.append(bytes(await link.receive(bytes([number]))))

    async with trio.open_nursery() as nursery:
        for number, (link, _) in enumerate(pairs):
            nursery.start_soon(receive, number, link)
        for number, (_, peer) in enumerate(pairs):
            await peer.send_all(bytes([number]) * 1000)
    assert sorted(got) == [bytes([number]) * 1001 for number in range(3)]
    for link, peer in pairs:
        await link.aclose()
        await peer.aclose()


async def test_sending_now_takes_what_fits_and_the_rest_waits():
    link, peer = await sockets()
    data = memoryview(bytes(64 << 20))
    sent = link.send_now(data)
    assert 0 < sent < len(data)
    while link.send_now(data):
        pass
    with trio.move_on_after(0.01) as scope:
        await link.send_some(data)
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.send_some, data)
        while nursery.child_tasks:
            await peer.receive_some(1 << 20)
            await trio.lowlevel.checkpoint()
    await link.aclose()
    await peer.aclose()


async def test_a_closed_link_wakes_its_reader_and_refuses():
    link, peer = await sockets()

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await link.receive(b"")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await link.aclose()
    with pytest.raises(trio.ClosedResourceError):
        link.send_now(memoryview(b"x"))
    await peer.aclose()


async def test_a_broken_connection_says_why():
    link, peer = await sockets()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with a reset
    await peer.aclose()
    with pytest.raises(trio.BrokenResourceError, match="connection reset by peer"):
        await link.receive(b"")
    with pytest.raises(trio.BrokenResourceError):
        link.send_now(memoryview(b"x"))
    await link.aclose()


async def test_any_stream_will_do(autojump_clock):
    ours, theirs = trio.testing.memory_stream_pair()
    link = link_over(ours)
    assert isinstance(link, StreamLink)
    assert repr(link).startswith("<StreamLink over ")
    assert link.send_now(memoryview(b"x")) == 0
    assert await link.send_some(memoryview(b"hello")) == 5
    assert await theirs.receive_some() == b"hello"
    await theirs.send_all(b"body")
    assert bytes(await link.receive(b"head ")) == b"head body"
    await link.aclose()
    assert await theirs.receive_some() == b""
