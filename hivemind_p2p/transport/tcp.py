"""TCP as a libp2p ``ITransport``: IPv4, IPv6 and names, with failures that say what happened.

libp2p's own TCP transport turns every failure into the same words, opens the same port twice without complaint
(``SO_REUSEPORT``), and runs its listeners in tasks that belong to nobody. This one leaves a listener's task in the
nursery that is set as its ``background_nursery``, as libp2p's swarm does. Dials leave from the port that is listened on
(``shared_port``), so that NATs can be punched through.
"""

from __future__ import annotations

import errno
import os
import random
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import trio
from libp2p.abc import IListener, IRawConnection, ITransport
from multiaddr import Multiaddr

from hivemind_p2p.errors import ListenError, TransportError
from hivemind_p2p.transport.addresses import Endpoint, endpoint_of, maddr_of, split_peer
from hivemind_p2p.transport.raw import RawConnection
from hivemind_p2p.transport.shared_port import CAN_SHARE, SharedPort, bare_socket

_BACKLOG: Final = 1024
_SYN_ACKS: Final = 2
_PUNCH_PAUSE: Final = (0.02, 0.05)
_SOURCE_FAILED: Final = frozenset({errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EINVAL, errno.EACCES})
_PUNCH_AGAIN: Final = frozenset({errno.ECONNREFUSED, errno.ECONNRESET, errno.EADDRNOTAVAIL, errno.EADDRINUSE})
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
_UNSENT: Final = 256 * 1024
"""Bytes that the kernel takes beyond what it can send at once. Trio's 16 KiB would cut each of our frames into several
writes; much more would lie before whatever else is to be sent, which on a slow line takes its time."""

_LOOKUPS: Final = 16
"""Names that are looked up at once."""
_limiter: Final[trio.lowlevel.RunVar[trio.CapacityLimiter]] = trio.lowlevel.RunVar("name_lookups")

Handler = Callable[[RawConnection], Awaitable[None]]


class TCPTransport(ITransport):
    """Dials and listens on ``/ip4|ip6|dns|dns4|dns6/.../tcp/...``."""

    def __init__(self) -> None:
        self.shared_port = SharedPort()

    async def dial(self, maddr: Multiaddr, *, from_shared_port: bool = True) -> IRawConnection:
        """Connect; a name's addresses are tried one after the other. Bound it with a cancel scope.

        Args:
            from_shared_port: leave from the port that we listen on, where that is possible.

        Raises:
            TransportError: in words, why it failed.
        """
        failures: list[str] = []
        for family, target in await _resolve(_endpoint(maddr)):
            try:
                return await self._connect(family, target, from_shared_port=from_shared_port)
            except OSError as error:
                failures.append(_reason(error))
        raise TransportError("; ".join(dict.fromkeys(failures)))

    async def punch(self, maddr: Multiaddr) -> RawConnection:
        """Connect through a hole that the other side opens by dialling us at the same time. Bound it with a scope.

        There is one dial at a time, since two cannot have the same addresses and ports at both ends. What refuses (a
        NAT that answers for the host behind it) is dialled again at once; silence is left to TCP's own repetitions.

        Raises:
            TransportError: it cannot be dialled from the shared port at all.
        """
        endpoint = _endpoint(maddr)
        if endpoint.ip is None:
            raise TransportError(f"{maddr} is a name; only an IP address can be punched through to")
        target = (endpoint.host, endpoint.port)
        while True:
            try:
                sock = await self.shared_port.dialling(endpoint.family, endpoint.host)
                return await _connected(sock, target)
            except OSError as error:
                if error.errno not in _PUNCH_AGAIN:
                    raise TransportError(_reason(error)) from None
            await trio.sleep(random.uniform(*_PUNCH_PAUSE))

    async def _connect(self, family: int, target: Any, *, from_shared_port: bool) -> RawConnection:
        if from_shared_port:
            try:
                return await _connected(await self.shared_port.dialling(family, target[0]), target)
            except OSError as error:
                if error.errno not in _SOURCE_FAILED:
                    raise
        # That pair of addresses is in use (a connection that ended just now), or the source cannot reach the target.
        raw = await _connected(bare_socket(family), target)
        raw.aside = CAN_SHARE
        return raw

    def close(self) -> None:
        """Give up the port that dials left from, where nothing listened on it."""
        self.shared_port.close()

    def create_listener(self, handler_function: Callable[..., Awaitable[None]]) -> TCPListener:
        return TCPListener(handler_function, self.shared_port)

    def can_dial(self, maddr: Multiaddr) -> bool:
        return endpoint_of(split_peer(maddr)[0]) is not None

    def can_listen(self, maddr: Multiaddr) -> bool:
        endpoint = endpoint_of(maddr)
        return endpoint is not None and endpoint.ip is not None

    def protocols(self) -> list[str]:
        return ["tcp"]


class TCPListener(IListener):
    """Accepts connections on one address and hands each to ``handler``, in a task of ``background_nursery``."""

    background_nursery: trio.Nursery

    def __init__(self, handler: Handler, shared_port: SharedPort) -> None:
        self._handler = handler
        self._shared_port = shared_port
        self._listener: trio.SocketListener | None = None
        self._scope = trio.CancelScope()

    async def listen(self, maddr: Multiaddr) -> None:
        """Bind and start to accept.

        Raises:
            ListenError: the address is malformed, taken, or not of this machine.
        """
        endpoint = endpoint_of(maddr)
        if endpoint is None or endpoint.ip is None:
            raise ListenError(
                f"cannot listen on {maddr}: it is not a TCP address; it should look like /ip4/0.0.0.0/tcp/31337"
            )
        if endpoint.port > 65535:
            raise ListenError(f"cannot listen on {maddr}: ports end at 65535")
        try:
            self._listener = await _bind(endpoint, self._shared_port)
        except OSError as error:
            raise ListenError(f"cannot listen on {maddr}: {_advice(error)}") from None
        self.background_nursery.start_soon(self._serve)

    async def _serve(self) -> None:
        assert self._listener is not None
        with self._scope:
            while True:
                try:
                    stream = await self._listener.accept()
                except OSError as error:
                    if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                        raise
                    await trio.sleep(0.1)  # out of descriptors: wait for some to come free, as trio.serve_tcp does
                except trio.ClosedResourceError:
                    return
                else:
                    self.background_nursery.start_soon(self._handler, _wrap(stream, initiator=False))

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        """The bound address, with its real port."""
        if self._listener is None:
            return ()
        host, port = self._listener.socket.getsockname()[:2]
        return (maddr_of(host, port),)

    async def close(self) -> None:
        self._scope.cancel()
        if self._listener is not None:
            await self._listener.aclose()

    def __repr__(self) -> str:
        return f"<TCPListener on {', '.join(map(str, self.get_addrs())) or 'nothing'}>"


def _endpoint(maddr: Multiaddr) -> Endpoint:
    bare, _ = split_peer(maddr)
    endpoint = endpoint_of(bare)
    if endpoint is None:
        raise TransportError(f"{bare} is not a TCP address")
    return endpoint


async def _connected(sock: trio.socket.SocketType, target: Any) -> RawConnection:
    try:
        await sock.connect(target)
    except BaseException:
        sock.close()
        raise
    return _wrap(trio.SocketStream(sock), initiator=True)


async def _bind(endpoint: Endpoint, shared_port: SharedPort) -> trio.SocketListener:
    sock = trio.socket.socket(endpoint.family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would let two programs share the port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if endpoint.family == socket.AF_INET6:  # so that :: and 0.0.0.0 can both be listened on, each with its own
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await sock.bind((endpoint.host, endpoint.port))
        shared_port.listen(sock)
        if hasattr(socket, "TCP_SYNCNT"):  # who dials repeats its SYN; half-open, its address cannot be dialled by us
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, _SYN_ACKS)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(sock)


async def _resolve(endpoint: Endpoint) -> list[tuple[int, Any]]:
    """Where an endpoint leads to. A name that nobody answers for costs a thread, which lives on when we have given up;
    so names have threads of their own, and not those that the rest of the program needs.
    """
    ask = partial(socket.getaddrinfo, endpoint.host, endpoint.port, endpoint.family, socket.SOCK_STREAM)
    try:
        if endpoint.ip is not None:
            found = ask()
        else:
            # (mypy sees the older trio-stubs that libp2p brings.)
            found = await trio.to_thread.run_sync(ask, abandon_on_cancel=True, limiter=_lookups())  # type: ignore[call-arg]
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise TransportError(f"the name {endpoint.host!r} cannot be resolved: {reason or error}") from None
    return [(family, target) for family, _, _, _, target in found]


def _lookups() -> trio.CapacityLimiter:
    try:
        return _limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(_LOOKUPS)
        _limiter.set(limiter)
        return limiter


def _wrap(stream: trio.SocketStream, *, initiator: bool) -> RawConnection:
    """Trio has turned Nagle's delay off. Keep-alive finds out about peers that lost power within a minute or so."""
    try:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):
                stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
        remote = maddr_of(*stream.socket.getpeername()[:2])
        local = maddr_of(*stream.socket.getsockname()[:2])
    except OSError:  # it is gone already; the first read will say so
        return RawConnection(stream, None, initiator=initiator)
    raw = RawConnection(stream, remote, initiator=initiator)
    endpoint = endpoint_of(local)
    raw.local_ip = endpoint.host if endpoint is not None else None
    return raw


def _reason(error: OSError) -> str:
    return (os.strerror(error.errno) if error.errno else str(error)).lower()


def _advice(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program listens there; stop it, choose another port, or port 0 for a free one"
    if error.errno == errno.EADDRNOTAVAIL:
        return "the address is not one of this machine; use one of its own, or 0.0.0.0 (:: for IPv6) for all of them"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "ports below 1024 are for privileged programs; choose a higher one"
    if error.errno == errno.EAFNOSUPPORT:
        return "this machine does not speak that address family; use the other one"
    return f"{_reason(error)}; choose another address"
