"""``DHTNode``: one node of the distributed hash table.

It speaks hivemind 1.1's DHT. Keys, subkeys and values are anything that msgpack can carry; every record expires, and of
two records for one key the one that expires later is the newer. This file is the front door: what is found comes from
``search``, what is stored goes through ``store``, ``caching`` and ``upkeep`` work behind, ``protocol`` talks to peers.
"""

from __future__ import annotations

import logging
import random as random_module
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio
from multiaddr import Multiaddr

from hivemind_p2p.background import Background
from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht import keys as keys_module
from hivemind_p2p.dht import remembered
from hivemind_p2p.dht.authorization import AuthorizerBase
from hivemind_p2p.dht.caching import Caching
from hivemind_p2p.dht.clock import get_dht_time
from hivemind_p2p.dht.crawl import Crawl
from hivemind_p2p.dht.find_peer import find_peer
from hivemind_p2p.dht.join import join
from hivemind_p2p.dht.keys import DHTID, DHTKey, DHTValue, Subkey
from hivemind_p2p.dht.messages import PeerContact, StoreItem
from hivemind_p2p.dht.protocol import DHTProtocol
from hivemind_p2p.dht.search import Searches
from hivemind_p2p.dht.store import store_items
from hivemind_p2p.dht.survey import PeerReport, survey
from hivemind_p2p.dht.trace import DHTTrace
from hivemind_p2p.dht.upkeep import Upkeep
from hivemind_p2p.dht.validation import CompositeValidator, DHTRecord, RecordValidatorBase, Signer
from hivemind_p2p.errors import BootstrapError, InvalidRecord, NodeClosed
from hivemind_p2p.kademlia import SHA1, ValueWithExpiration
from hivemind_p2p.kademlia.records import Record
from hivemind_p2p.wire import msgpack
from hivemind_p2p.wire.peer_id import PeerID

if TYPE_CHECKING:
    from hivemind_p2p.rpc import RPC

logger = logging.getLogger(__name__)
_FIRST_NOTE: Final = 30.0
_NOTE_EVERY: Final = 300.0


class DHTNode(Background):
    """``async with DHTNode(rpc) as dht``: serve the DHT while inside, store and get.

    Args:
        rpc: makes and serves the calls; must outlive the node.
        settings: bounds, timeouts, caching; see :class:`~hivemind_p2p.config.DHTSettings`.
        node_id: our id, of 160 bits. By default the SHA-1 of our peer id, by which ``find_peer`` finds us.
        client_mode: use the DHT without serving it: others do not take us into their tables.
        clock: Unix time in seconds; another one only in tests.
        random: chooses the ids that refresh the routing table.
        record_validators: judge and sign records, see :mod:`hivemind_p2p.dht.validation`.
        identity: what validators may sign with.
        authorizer: for a moderated swarm, see :mod:`hivemind_p2p.dht.authorization`.
        trace: told of every lookup, see :mod:`hivemind_p2p.dht.trace`; must not wait.
        remember_in: file in which peers are kept from run to run, see :meth:`rejoin`. None: nowhere.
    """

    def __init__(
        self,
        rpc: RPC,
        settings: DHTSettings | None = None,
        *,
        node_id: DHTID | None = None,
        client_mode: bool = False,
        clock: Callable[[], float] = get_dht_time,
        random: random_module.Random | None = None,
        record_validators: Iterable[RecordValidatorBase] = (),
        identity: Signer | None = None,
        authorizer: AuthorizerBase | None = None,
        remember_in: Path | None = None,
        trace: DHTTrace | None = None,
    ) -> None:
        self.settings = settings if settings is not None else DHTSettings()
        own_id = keys_module.node_id_of(rpc.network.peer_id) if node_id is None else node_id
        self._validator, self._identity = CompositeValidator(), identity
        self.protocol = DHTProtocol(
            rpc,
            self.settings,
            node_id=own_id,
            clock=clock,
            client_mode=client_mode,
            validator=self._validator,
            authorizer=authorizer,
            trace=trace,
        )
        self.add_validators(record_validators)
        self._upkeep = Upkeep(self.protocol, random if random is not None else random_module.Random())
        self._remember_in = remember_in
        self._caching = Caching(self.protocol, self._upkeep.send_later)
        self._searches: Searches | None = None

    @property
    def node_id(self) -> DHTID:
        """Our id."""
        return self.protocol.own.node_id

    async def _begin(self, nursery: trio.Nursery) -> None:
        self._searches = Searches(self.protocol, nursery, self._caching.after_get)
        nursery.start_soon(self.protocol.alarms.run)
        nursery.start_soon(self._upkeep.run)
        if self._remember_in is not None:
            nursery.start_soon(self._remember_for_ever)
        nursery.start_soon(self._caching.run, self._searches)
        self.protocol.serve()

    async def _end(self) -> None:
        self.protocol.stop()
        self._remember()
        self._searches = None

    def add_validators(self, record_validators: Iterable[RecordValidatorBase]) -> None:
        """Have records judged by more validators from now on; what they refuse of what is stored here is dropped."""
        validators = list(record_validators)
        if self._identity is not None:
            for validator in validators:
                validator.bind(self._identity, self.protocol.own.peer)
        self._validator.extend(validators)
        if validators:
            self.protocol.records.drop_invalid()

    async def bootstrap(self, initial_peers: Iterable[str | Multiaddr]) -> None:
        """Join a swarm through any live one of its peers, all tried at once.

        Args:
            initial_peers: addresses, each ending in ``/p2p/<peer id>``.

        Raises:
            BootstrapError: none of them answered; it says what happened at each.
        """
        self._running()
        with self._upkeep.joining():
            await join(self.protocol, initial_peers)

    async def rejoin(self) -> bool:
        """Join through the peers of the last run; False when none of them is there any more.

        They are noted every few minutes and at the end, if ``remember_in`` says where.
        """
        self._running()
        maddrs = [] if self._remember_in is None else remembered.load(self._remember_in)
        if not maddrs:
            return False
        try:
            with self._upkeep.joining():
                await join(self.protocol, maddrs)
        except BootstrapError as error:
            logger.info("none of the peers of the last run: %s", error)
            return False
        return True

    async def store(
        self,
        key: DHTKey,
        value: DHTValue,
        expiration_time: float,
        subkey: Subkey = None,
        exclude_self: bool = False,
    ) -> bool:
        """Store a value at the ``num_replicas`` nodes nearest to its key until it expires.

        Args:
            key: anything hashable that msgpack can carry.
            value: anything that msgpack can carry.
            expiration_time: Unix time in seconds.
            subkey: store under this part of the key only; parts of one key live and expire on their own.
            exclude_self: never store here, even if we are among the nearest.

        Returns:
            Whether any node accepted it. They refuse what does not expire later than what they have.

        Raises:
            InvalidRecord: no node would store it: it has expired, is too large, cannot be packed, or our own
                validators refuse it.
            NodeClosed: the node was closed meanwhile.
        """
        subkeys = None if subkey is None else [subkey]
        stored = await self.store_many([key], [value], [expiration_time], subkeys, exclude_self)
        return stored[key if subkey is None else (key, subkey)]

    async def store_many(
        self,
        keys: Sequence[DHTKey],
        values: Sequence[DHTValue],
        expiration_time: float | Sequence[float],
        subkeys: Sequence[Subkey] | None = None,
        exclude_self: bool = False,
    ) -> dict[Any, bool]:
        """Store many values at once; every peer is asked as few times as possible.

        Args:
            keys, values: of one length.
            expiration_time: one for all, or one for each.
            subkeys: one for each key; None for keys without.

        Returns:
            For each key, or ``(key, subkey)`` where there is a subkey, whether any node accepted it; of records with
            equal names (such as 1 and True), whether all were accepted.

        Raises:
            InvalidRecord: as for :meth:`store`; then nothing was stored.
        """
        self._running()
        times = list(expiration_time) if isinstance(expiration_time, Sequence) else [expiration_time] * len(keys)
        parts = list(subkeys) if subkeys is not None else [None] * len(keys)
        if not len(keys) == len(values) == len(times) == len(parts):
            raise InvalidRecord(
                f"{len(keys)} keys, {len(values)} values, {len(times)} expiration times and {len(parts)} subkeys "
                "do not fit together: give one of each per record"
            )
        names = defaultdict[DHTID, list[Any]](list)
        items = defaultdict[DHTID, list[StoreItem]](list)
        now = self.protocol.clock()
        for key, value, time, subkey in zip(keys, values, times, parts, strict=True):
            key_id = keys_module.checked_key_id(key, self.settings)
            tag = keys_module.checked_tag(subkey, self.settings)
            packed = keys_module.checked_value(key, value, self.settings)
            keys_module.check_expiration(key, time, self.settings, now=now)
            signed = self._sign(key, DHTRecord(SHA1.to_bytes(key_id), tag, packed, float(time)))
            items[key_id].append(StoreItem(key_id, tag, signed, float(time)))
            names[key_id].append(key if subkey is None else (key, subkey))
        verdicts = await store_items(self.protocol, items, exclude_self=exclude_self)
        if self._searches is None:
            raise NodeClosed("the DHT node was closed while it stored a record; it is not known who has it")
        stored: dict[Any, bool] = {}
        for key_id, its_items in items.items():
            self._caching.after_store(key_id, its_items, verdicts[key_id])
            for name, verdict in zip(names[key_id], verdicts[key_id], strict=True):
                stored[name] = bool(verdict) and stored.get(name, True)
                if not verdict:
                    logger.debug("nobody stored %.80r; the last one's reason: %s", name, verdict.name)
        return stored

    async def get(
        self, key: DHTKey, latest: bool = False, *, sufficient_expiration_time: float | None = None
    ) -> ValueWithExpiration[Any] | None:
        """The value of a key, or None when nobody has one.

        Args:
            latest: ask all of the nodes nearest to the key, and take the value that expires last. Otherwise any value
                that has not expired will do, ours before others'.
            sufficient_expiration_time: something between: a value will do if it expires no earlier.

        Returns:
            ``(value, expiration_time)``. The value of a key with subkeys is a dictionary of
            ``subkey: (value, expiration_time)``.

        Raises:
            InvalidRecord: the key cannot be one.
        """
        sufficient = float("inf") if latest else sufficient_expiration_time
        return (await self.get_many([key], sufficient))[key]

    async def get_many(
        self, keys: Collection[DHTKey], sufficient_expiration_time: float | None = None
    ) -> dict[DHTKey, ValueWithExpiration[Any] | None]:
        """The values of many keys; see :meth:`get`. Every peer is asked as few times as possible.

        Raises:
            InvalidRecord: a key cannot be one, or two are equal for Python and not for the DHT, such as 1 and True.
        """
        searches = self._running()
        ids: dict[DHTKey, DHTID] = {}
        for key in keys:
            key_id = keys_module.checked_key_id(key, self.settings)
            if ids.setdefault(key, key_id) != key_id:
                raise InvalidRecord(
                    f"{key!r:.80} equals another of these keys and is not the same: get them one by one"
                )
        now = self.protocol.clock()
        sufficient = now if sufficient_expiration_time is None else sufficient_expiration_time
        self._caching.used(ids.values())
        found = await searches.get_many(ids.values(), sufficient)
        return {key: self._unpack(key_id, found[key_id]) for key, key_id in ids.items()}

    async def find_nearest_nodes(
        self, node_ids: Collection[DHTID], k_nearest: int | None = None, exclude_self: bool = False
    ) -> dict[DHTID, list[PeerContact]]:
        """The nodes nearest to some ids, nearest first.

        Args:
            k_nearest: how many of each; at most, and by default, ``bucket_size``.
            exclude_self: whether to leave us out.
        """
        self._running()
        crawl = Crawl(self.protocol, node_ids)
        await crawl.run()
        ours = [] if exclude_self or self.protocol.client_mode else [self.protocol.own]
        count = self.settings.bucket_size if k_nearest is None else k_nearest
        return {
            node_id: sorted([*crawl.nearest(node_id), *ours], key=lambda contact: contact.node_id ^ node_id)[:count]
            for node_id in node_ids
        }

    async def find_peer(self, peer_id: PeerID) -> Sequence[Multiaddr]:
        """Addresses of a peer as the swarm tells them, without ``/p2p``; empty when nobody knows any.

        Finds nodes that are no clients and did not choose a node id of their own.
        """
        self._running()
        return await find_peer(self.protocol, peer_id)

    async def survey(self, max_nodes: int = 10_000) -> list[PeerReport]:
        """Every node of the swarm that can be found, ourselves excepted, and how it answers; in the order of ids."""
        self._running()
        return await survey(self.protocol, max_nodes=max_nodes)

    @property
    def clock_offset(self) -> float | None:
        """Seconds by which the clocks of most peers that we pinged are ahead of ours; None: nobody was asked."""
        return self.protocol.clock_offsets.median

    def __repr__(self) -> str:
        state = "closed" if self._searches is None else "client" if self.protocol.client_mode else "serving"
        return (
            f"<DHTNode {self.node_id:040x}, {state}: {len(self.protocol.table)} contacts, "
            f"{len(self.protocol.storage)} records, {len(self.protocol.cache)} cached>"
        )

    def _running(self) -> Searches:
        if self._searches is None:
            raise NodeClosed("this DHT node is not running: use it inside `async with DHTNode(rpc) as dht`")
        return self._searches

    def _remember(self) -> None:
        if self._remember_in is not None:
            remembered.save(self._remember_in, remembered.worth_remembering(self.protocol))

    async def _remember_for_ever(self) -> None:
        await trio.sleep(_FIRST_NOTE)
        while True:
            self._remember()
            await trio.sleep(_NOTE_EVERY)

    def _sign(self, key: DHTKey, record: DHTRecord) -> bytes:
        """The value as it is to be stored."""
        if not len(self._validator):
            return record.value
        signed = replace(record, value=self._validator.sign_value(record))
        keys_module.check_size(key, signed.value, self.settings)
        refused_by = self._validator.refused_by(signed)
        if refused_by is not None:
            raise InvalidRecord(
                f"{refused_by} of this node refuses the record of {key!r:.80}: its value does not fit the schema, or "
                "its subkey names an owner whose key we do not hold"
            )
        return signed.value

    def _strip(self, key: DHTID, tag: bytes, item: ValueWithExpiration[bytes]) -> bytes:
        """A value without what validators added to it."""
        if not len(self._validator):
            return item.value
        return self._validator.strip_value(DHTRecord(SHA1.to_bytes(key), tag, *item))

    def _unpack(self, key: DHTID, found: ValueWithExpiration[Record] | None) -> ValueWithExpiration[Any] | None:
        """What users see of a record. What is no msgpack cannot have been stored by ``store``: it is not there."""
        if found is None or found.expiration_time <= self.protocol.clock():  # it may have taken long to find
            return None
        record, expiration_time = found
        try:
            if isinstance(record, bytes):
                value = self._strip(key, keys_module.REGULAR_TAG, ValueWithExpiration(record, expiration_time))
                return ValueWithExpiration(msgpack.loads(value), expiration_time)
        except ValueError as error:
            logger.debug("found a value that is not msgpack: %s", error)
            return None
        entries = {}
        for tag, item in record.items(self.protocol.clock()):
            try:
                value = msgpack.loads(self._strip(key, tag, item))
                entries[keys_module.subkey_from(tag)] = ValueWithExpiration(value, item.expiration_time)
            except ValueError as error:
                logger.debug("found a subkey whose value is not msgpack: %s", error)
        return ValueWithExpiration(entries, expiration_time) if entries else None
