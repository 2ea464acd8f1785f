"""Listener and dials on one port. (That NATs see it so is tested in ``tests/nat``.)"""

from __future__ import annotations

import socket
from contextlib import closing

import pytest
import trio
import trio.testing

from hivemind_p2p.errors import ListenError
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.punch import speaks_as_client
from hivemind_p2p.transport.raw import RawConnection
from hivemind_p2p.transport.shared_port import SharedPort
from tests.transport.hosts import LOOPBACK

FAR = "203.0.113.5"


async def bound() -> trio.socket.SocketType:
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    await sock.bind(("0.0.0.0", 0))
    return sock


async def test_dials_leave_from_the_port_that_is_listened_on():
    ports = SharedPort()
    with await bound() as listener:
        ports.listen(listener)
        listener.listen(1)
        with await ports.dialling(socket.AF_INET, FAR) as one, await ports.dialling(socket.AF_INET, FAR) as other:
            assert one.getsockname() == other.getsockname() == listener.getsockname()
        assert repr(ports) == f"<SharedPort {listener.getsockname()[1]}>"


async def test_who_listens_on_nothing_keeps_one_port_for_all_dials():
    with (
        closing(SharedPort()) as ports,
        await ports.dialling(socket.AF_INET, FAR) as one,
        await ports.dialling(socket.AF_INET, FAR) as other,
    ):
        assert one.getsockname() == other.getsockname()
        assert one.getsockname()[1] != 0


async def test_this_machine_is_dialled_from_any_port():
    ports = SharedPort()
    with await bound() as listener:
        ports.listen(listener)
        with await ports.dialling(socket.AF_INET, "127.0.0.1") as sock:
            assert sock.getsockname()[1] == 0, "not bound yet"


async def test_a_port_that_is_shared_is_still_taken_for_other_programs():
    async with Host(Identity.generate(), host_maddrs=[LOOPBACK]) as host:
        [taken] = host.listen_maddrs
        with pytest.raises(ListenError, match="another program listens there"):
            async with Host(Identity.generate(), host_maddrs=[taken]):
                pass


@pytest.mark.parametrize(
    ("said", "is_client"),
    [
        (b"\x13/multistream/1.0.0\n\x07/noise\n", True),
        (b"\x13/multistream/1.0.0\n", False),
        (b"", False),
        (b"GET / HTTP/1.1\r\n", True),
    ],
)
async def test_who_begins_as_a_client_is_told_by_its_first_words(said: bytes, is_client: bool):
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        ours = await trio.testing.open_stream_to_socket_listener(listener)
        async with ours, await listener.accept() as theirs:
            if said:
                await theirs.send_all(said)
            raw = RawConnection(ours, None, initiator=True)
            assert await speaks_as_client(raw, 0.2) is is_client
            if said:
                assert await raw.read(len(said)) == said, "nothing was taken off"
