"""``DHT``: a node, used from ordinary threads. The names and their meaning are those of ``hivemind.DHT``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from multiaddr import Multiaddr

from hivemind_p2p.config import Settings
from hivemind_p2p.dht import AuthorizerBase, DHTNode, RecordValidatorBase
from hivemind_p2p.dht.keys import DHTKey, DHTValue, Subkey
from hivemind_p2p.errors import NodeClosed
from hivemind_p2p.kademlia import ValueWithExpiration
from hivemind_p2p.node import DEFAULT_HOST_MADDRS, Node
from hivemind_p2p.sync.hivemind_options import with_options
from hivemind_p2p.sync.portal_thread import Held, PortalFuture, portal
from hivemind_p2p.wire.peer_id import PeerID

_T = TypeVar("_T")
_Found = ValueWithExpiration[Any] | None


class DHT:
    """One peer of a swarm, which runs in the background: ``with DHT(initial_peers, start=True) as dht``.

    Methods may be called from any thread, also inside another event loop. With ``return_future=True`` they return a
    :class:`concurrent.futures.Future` at once.

    Args:
        initial_peers: addresses of live peers, each ending in ``/p2p/<peer id>``. None: the first node of its swarm.
        start: start at once; otherwise :meth:`run_in_background` does.
        await_ready: with ``start``: wait until the node listens and has joined.
        shutdown_timeout: seconds that :meth:`shutdown` gives the node to end cleanly.
        host_maddrs, announce_maddrs, identity_path, client_mode: as for :class:`hivemind_p2p.Node`.
        settings: everything else, see :mod:`hivemind_p2p.config`.
        record_validators: judge and sign records, see :mod:`hivemind_p2p.dht.validation`.
        authorizer: for a moderated swarm, see :mod:`hivemind_p2p.dht.authorization`.
        options: single fields of :class:`~hivemind_p2p.config.DHTSettings`, by name, which hivemind takes here;
            ``num_workers`` is ``alpha``.

    Raises:
        ConfigError: an address is malformed, or an option is unknown or has no meaning here.
        IdentityError, ListenError, BootstrapError: the node cannot start, see :class:`hivemind_p2p.Node`.
    """

    def __init__(
        self,
        initial_peers: Sequence[str | Multiaddr] | None = None,
        *,
        start: bool,
        await_ready: bool = True,
        shutdown_timeout: float = 3.0,
        host_maddrs: Sequence[str | Multiaddr] | None = None,
        announce_maddrs: Sequence[str | Multiaddr] | None = None,
        identity_path: str | Path | None = None,
        client_mode: bool = False,
        settings: Settings | None = None,
        record_validators: Iterable[RecordValidatorBase] = (),
        authorizer: AuthorizerBase | None = None,
        **options: Any,
    ) -> None:
        self._held: Held[Node] | None = None
        self._peer_id: PeerID | None = None
        self.shutdown_timeout = shutdown_timeout
        self.initial_peers = () if initial_peers is None else initial_peers
        self._started_later = Node(
            self.initial_peers,
            host_maddrs=DEFAULT_HOST_MADDRS if host_maddrs is None else host_maddrs,
            announce_maddrs=() if announce_maddrs is None else announce_maddrs,
            identity_path=identity_path,
            client_mode=client_mode,
            settings=with_options(settings if settings is not None else Settings(), options),
            record_validators=record_validators,
            authorizer=authorizer,
        )
        if start:
            self.run_in_background(await_ready=await_ready)

    def run_in_background(self, await_ready: bool = True, timeout: float | None = None) -> None:
        """Start the node; with ``await_ready``, :meth:`wait_until_ready`.

        Raises:
            NodeClosed: it was started before; make a new DHT.
        """
        if self._held is not None:
            raise NodeClosed("this DHT was started before; make a new one instead of starting one twice")
        self._held = portal().hold(self._started_later)
        if await_ready:
            self.wait_until_ready(timeout)

    def wait_until_ready(self, timeout: float | None = None) -> None:
        """Wait until the node listens and has joined.

        Raises:
            TimeoutError: it takes longer than ``timeout`` seconds; it goes on starting.
            IdentityError, ListenError, BootstrapError: it cannot start.
        """
        self._note_peer_id(self._ready().value(timeout))

    @property
    def node(self) -> Node:
        """The node itself, for asynchronous code inside :meth:`run_coroutine`.

        Raises:
            NodeClosed: it was not started, or was shut down.
        """
        held = self._ready()
        node = held.value()
        if held.closed:
            raise NodeClosed("this DHT was shut down, or stayed with the process that this one was forked from")
        self._note_peer_id(node)
        return node

    @property
    def peer_id(self) -> PeerID:
        """Who we are. Known even after :meth:`shutdown`."""
        if self._peer_id is None:
            self._peer_id = self.node.peer_id
        return self._peer_id

    @property
    def client_mode(self) -> bool:
        """Whether it uses the DHT without serving it."""
        return self._started_later.client_mode

    def get_visible_maddrs(self, latest: bool = False) -> list[Multiaddr]:
        """Addresses for others' ``initial_peers``, each ending in ``/p2p/<our id>``; empty in client mode.

        Args:
            latest: they always are; hivemind asks its daemon only when told to.
        """

        async def visible_maddrs(node: Node) -> list[Multiaddr]:
            return list(node.visible_maddrs)

        return portal().call(visible_maddrs, self.node)

    @overload
    def get(
        self,
        key: DHTKey,
        latest: bool = ...,
        return_future: Literal[False] = ...,
        *,
        sufficient_expiration_time: float | None = ...,
    ) -> _Found: ...
    @overload
    def get(
        self, key: DHTKey, latest: bool = ..., *, return_future: Literal[True],
        sufficient_expiration_time: float | None = ...,
    ) -> PortalFuture[_Found]: ...  # fmt: skip
    def get(
        self,
        key: DHTKey,
        latest: bool = False,
        return_future: bool = False,
        *,
        sufficient_expiration_time: float | None = None,
    ) -> _Found | PortalFuture[_Found]:
        """The value of a key with its expiration time, or None; see :meth:`hivemind_p2p.DHTNode.get`."""

        async def get(_: DHT, node: DHTNode) -> _Found:
            return await node.get(key, latest, sufficient_expiration_time=sufficient_expiration_time)

        return self.run_coroutine(get, return_future)

    @overload
    def store(
        self,
        key: DHTKey,
        value: DHTValue,
        expiration_time: float,
        subkey: Subkey = ...,
        return_future: Literal[False] = ...,
        *,
        exclude_self: bool = ...,
    ) -> bool: ...
    @overload
    def store(
        self, key: DHTKey, value: DHTValue, expiration_time: float, subkey: Subkey = ..., *,
        return_future: Literal[True], exclude_self: bool = ...,
    ) -> PortalFuture[bool]: ...  # fmt: skip
    def store(
        self,
        key: DHTKey,
        value: DHTValue,
        expiration_time: float,
        subkey: Subkey = None,
        return_future: bool = False,
        *,
        exclude_self: bool = False,
    ) -> bool | PortalFuture[bool]:
        """Store a value until it expires; whether any node accepted it; see :meth:`hivemind_p2p.DHTNode.store`."""

        async def store(_: DHT, node: DHTNode) -> bool:
            return await node.store(key, value, expiration_time, subkey, exclude_self)

        return self.run_coroutine(store, return_future)

    def add_validators(self, record_validators: Iterable[RecordValidatorBase]) -> None:
        """Have records judged and signed by more validators; see :meth:`hivemind_p2p.DHTNode.add_validators`."""

        async def add_validators(_: DHT, node: DHTNode) -> None:
            node.add_validators(record_validators)

        self.run_coroutine(add_validators)

    @overload
    def run_coroutine(
        self, coro: Callable[[DHT, DHTNode], Awaitable[_T]], return_future: Literal[False] = ...
    ) -> _T: ...
    @overload
    def run_coroutine(
        self, coro: Callable[[DHT, DHTNode], Awaitable[_T]], return_future: Literal[True]
    ) -> PortalFuture[_T]: ...
    @overload
    def run_coroutine(
        self, coro: Callable[[DHT, DHTNode], Awaitable[_T]], return_future: bool
    ) -> _T | PortalFuture[_T]: ...
    def run_coroutine(
        self, coro: Callable[[DHT, DHTNode], Awaitable[_T]], return_future: bool = False
    ) -> _T | PortalFuture[_T]:
        """Run ``await coro(dht, dht_node)`` in the node's own thread, where it can await what a node offers.

        It must not block that thread, and must not call this object's waiting methods. Cancelling the future, or
        KeyboardInterrupt while waiting, cancels it.
        """
        node = self.node

        async def with_node() -> _T:
            return await coro(self, node.dht)

        return portal().submit(with_node) if return_future else portal().call(with_node)

    def is_alive(self) -> bool:
        """Whether it is starting or running."""
        return self._held is not None and not self._held.closed

    def shutdown(self) -> None:
        """Leave the swarm and wait until the node has ended; nothing happens if it has."""
        if self._held is not None and self.is_alive():
            self._held.close(self.shutdown_timeout)

    def join(self, timeout: float | None = None) -> None:
        """Wait until the node has ended, at most ``timeout`` seconds."""
        if self._held is not None and self.is_alive():
            self._held.wait_closed(timeout)

    def __enter__(self) -> Self:
        if self._held is None:
            self.run_in_background()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def __deepcopy__(self, memo: object) -> Self:
        """Itself: copies of a module that uses it are to use it, too."""
        return self

    def __del__(self) -> None:
        held = getattr(self, "_held", None)  # not there if the constructor failed
        if held is not None and not held.closed:
            held.close_soon()

    def __repr__(self) -> str:
        if self._held is None:
            return "<DHT, not started>"
        if self._held.closed:
            return "<DHT, shut down>"
        return f"<DHT of {self._started_later!r}>"

    def _note_peer_id(self, node: Node) -> None:
        if self._peer_id is None:
            with suppress(NodeClosed):  # it may have ended just now
                self._peer_id = node.peer_id

    def _ready(self) -> Held[Node]:
        if self._held is None:
            raise NodeClosed("this DHT was not started; make it with start=True, or call run_in_background()")
        return self._held
