"""Reaching a peer: all its known addresses, raced; one dial per peer, however many wait for it.

A dial asks the address book first. When nothing known answers, it asks the resolver (the DHT) for more and goes on.
The resolver dials, too, and must not wait for what is being resolved: inside it, a dial ends with the addresses that
are known. A dial runs in the host's nursery, so that a caller who gives up takes nothing from the others who wait; when
the last one gives up, it ends. ``race`` says which address is tried when; ``address_book`` remembers how they did.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import DialError, HivemindError, NodeClosed, TransportError
from hivemind_p2p.transport.address_book import AddressBook
from hivemind_p2p.transport.addresses import for_dialing, why_undialable
from hivemind_p2p.transport.api import Connection, PeerResolver
from hivemind_p2p.transport.race import Lost, Race, Start, Wait
from hivemind_p2p.wire.peer_id import PeerID

_NETWORKS_AGE: Final = 60.0
C = TypeVar("C", bound=Connection)


class WrongPeer(TransportError):
    """Somebody else lives at the address. Ends as one reason in a ``DialError``."""


class _Resolving:
    """Tasks inherit the context of who starts them, and may live on: this is worth nothing once it is over."""

    over = False


_resolving: ContextVar[_Resolving | None] = ContextVar("resolving", default=None)


def _inside_resolver() -> bool:
    resolving = _resolving.get()
    return resolving is not None and not resolving.over


@dataclass
class _Dial(Generic[C]):
    """One dial under way."""

    race: Race
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    settled: trio.Event = field(default_factory=trio.Event)
    known_tried: trio.Event = field(default_factory=trio.Event)
    changed: trio.Event = field(default_factory=trio.Event)
    waiting: int = 0
    attempts: list[tuple[str, str]] = field(default_factory=list)
    connection: C | None = None

    def settle(self, connection: C | None) -> None:
        if self.connection is None:
            self.connection = connection
        self.known_tried.set()
        self.settled.set()

    def poke(self) -> None:
        self.changed.set()


class Dialer(Generic[C]):
    """Dials for one host.

    Args:
        nursery: owns the dials.
        attempt: connects to a peer at one address, secured; raises TransportError. Cancelled when it takes too long.
        register: takes a new connection into use; raises TransportError when there is no room, NodeClosed at the end.
        networks: the networks of this machine's interfaces, see :func:`~.addresses.for_dialing`.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        book: AddressBook,
        settings: TransportSettings,
        attempt: Callable[[PeerID, Multiaddr], Awaitable[C]],
        register: Callable[[C], None],
        networks: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self.resolver: PeerResolver | None = None
        self._nursery = nursery
        self._book = book
        self._settings = settings
        self._attempt = attempt
        self._register = register
        self._dials: dict[PeerID, _Dial[C]] = {}
        self._look_up_networks = networks
        self._known_networks: Sequence[str] = ()
        self._networks_until = -math.inf

    async def dial(self, peer_id: PeerID, maddrs: Sequence[Multiaddr] = ()) -> C:
        """Connect to a peer.

        Args:
            maddrs: addresses to try before those that are known, even when they failed a moment ago.

        Raises:
            DialError: nobody answered; ``attempts`` says why at each address.
        """
        dial = self._dials.get(peer_id)
        if dial is not None and dial.connection is not None and dial.connection.closed:
            dial.scope.cancel()  # what it has come to has ended since: begin anew
            dial = None
        if dial is None:
            known = for_dialing(self._book.candidates(peer_id, trio.current_time()), self._networks())
            race = Race([*maddrs, *known], stagger=self._settings.dial_stagger, parallel=self._settings.dial_parallel)
            dial = self._dials[peer_id] = _Dial(race)
            self._nursery.start_soon(self._run, peer_id, dial)
        else:
            dial.race.add(maddrs)
            dial.poke()
        dial.waiting += 1
        try:
            await (dial.known_tried if _inside_resolver() else dial.settled).wait()
        finally:
            dial.waiting -= 1
            if not dial.waiting and not dial.settled.is_set():
                dial.scope.cancel()
                if self._dials.get(peer_id) is dial:
                    del self._dials[peer_id]
        if dial.connection is None:
            raise self._failure(peer_id, dial)
        return dial.connection

    def connected(self, connection: C) -> None:
        """A connection to the peer came about, in whatever way: who waits for it may go on. The dial itself runs to its
        end, since the peer may do the same, and both giving up would leave neither connection."""
        dial = self._dials.get(connection.peer_id)
        if dial is not None:
            dial.settle(connection)

    async def _run(self, peer_id: PeerID, dial: _Dial[C]) -> None:
        try:
            with dial.scope:
                if not await self._race(peer_id, dial) and await self._resolve(peer_id, dial):
                    await self._race(peer_id, dial)
        finally:
            if self._dials.get(peer_id) is dial:
                del self._dials[peer_id]
            dial.settle(None)

    async def _race(self, peer_id: PeerID, dial: _Dial[C]) -> bool:
        """Run the race to its end; whether there is a connection."""
        won = trio.Event()
        async with trio.open_nursery() as nursery:
            while not won.is_set():
                dial.changed = trio.Event()
                match dial.race.next(trio.current_time()):
                    case Start(maddr):
                        nursery.start_soon(self._try, peer_id, maddr, dial, won)
                    case Wait(until):
                        with trio.move_on_at(until):
                            await dial.changed.wait()
                    case Lost():
                        break
            nursery.cancel_scope.cancel()
        return won.is_set()

    async def _try(self, peer_id: PeerID, maddr: Multiaddr, dial: _Dial[C], won: trio.Event) -> None:
        number = len(dial.attempts)
        dial.attempts.append((str(maddr), "given up, since another address answered"))
        reason = ""
        try:
            with trio.move_on_after(self._settings.dial_timeout) as scope:
                connection = await self._attempt(peer_id, maddr)
            if scope.cancelled_caught:
                reason = f"no answer within {self._settings.dial_timeout:g} s"
            elif won.is_set():
                await connection.aclose()
            else:
                try:
                    self._register(connection)
                except (TransportError, NodeClosed):
                    await connection.aclose()
                    raise
                won.set()  # no checkpoint from here to settle(): the race is about to be cancelled
                self._book.succeeded(peer_id, maddr)
                dial.settle(connection)
        except WrongPeer as error:
            self._book.forget(peer_id, maddr)
            reason = str(error)
        except (TransportError, NodeClosed) as error:
            reason = str(error) or type(error).__name__
        if reason:
            dial.attempts[number] = (str(maddr), reason)
            self._book.failed(peer_id, maddr, reason, trio.current_time())
            dial.race.failed(maddr)
        dial.poke()

    async def _resolve(self, peer_id: PeerID, dial: _Dial[C]) -> bool:
        """Ask the swarm for more addresses; whether there are any."""
        dial.known_tried.set()
        if self.resolver is None or dial.settled.is_set():
            return False
        found: Iterable[Multiaddr] = ()
        resolving = _Resolving()
        token = _resolving.set(resolving)
        try:
            with trio.move_on_after(self._settings.resolve_timeout):
                found = await self.resolver(peer_id)
        except HivemindError as error:
            dial.attempts.append(("the swarm", f"looking up the peer's addresses failed: {error}"))
        finally:
            resolving.over = True
            _resolving.reset(token)
        tried = {address for address, _ in dial.attempts}
        fresh = [maddr for maddr in found if why_undialable(maddr) is None and str(maddr) not in tried]
        self._book.add(peer_id, fresh)
        dial.race.add(fresh)
        return bool(fresh)

    def look_again(self) -> None:
        """The networks of the machine may be others now."""
        self._networks_until = -math.inf

    def _networks(self) -> Sequence[str]:
        """The networks of this machine's interfaces, looked up again now and then."""
        now = trio.current_time()
        if now >= self._networks_until:
            self._networks_until = now + _NETWORKS_AGE
            self._known_networks = self._look_up_networks()
        return self._known_networks

    def _failure(self, peer_id: PeerID, dial: _Dial[C]) -> DialError:
        resting = self._book.resting(peer_id, trio.current_time())
        tried = {address for address, _ in dial.attempts}
        attempts = dial.attempts + [
            (str(maddr), f"not tried again for {wait:.1f} s: {reason}")
            for maddr, wait, reason in resting
            if str(maddr) not in tried
        ]
        if not attempts:
            return DialError(
                f"cannot reach {peer_id}: none of its addresses is known; pass an address that ends in /p2p/{peer_id}, "
                "or check that the peer is in this swarm",
                peer_id=peer_id.base58,
            )
        reasons = "; ".join(f"{address}: {reason}" for address, reason in attempts)
        return DialError(
            f"cannot reach {peer_id}: {reasons}; check that it runs and that its address can be dialled from here",
            peer_id=peer_id.base58,
            attempts=attempts,
        )

    def __repr__(self) -> str:
        return f"<Dialer, {len(self._dials)} dials under way>"
