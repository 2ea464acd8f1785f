"""A whole swarm in one process: real DHT nodes and calls over networks in memory, under a virtual clock, from one seed.

    PYTHONHASHSEED=0 python -m benchmarks.simulation --nodes 1000 --seed 7 --churn 0.5 --loss 0.1 --bad 0.1

The same arguments give the same run, event by event (the hash seed orders Python's sets). What a run says is in
``Result``; ``tests/simulation`` says how good it has to be, and ``scripts/bench dht --simulate`` draws it.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import math
import random
import sys
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio
import trio.testing

from benchmarks.bad_peers import BEHAVIOURS, turn_bad
from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht import DHTNode
from hivemind_p2p.dht.keys import key_id
from hivemind_p2p.dht.trace import LookupEnded
from hivemind_p2p.errors import BootstrapError, NodeClosed
from hivemind_p2p.rpc import RPC
from hivemind_p2p.rpc.trace import CallEnded, CallStarted
from hivemind_p2p.testing import World

T = TypeVar("T")
EPOCH = 1_800_000_000.0
JOIN_AT_ONCE = 20
LASTS = 3600.0
HEALING = 30.0
TELL_EVERY = 60.0
"""Real seconds."""


@dataclass(frozen=True)
class Conditions:
    """What a swarm has to live with."""

    nodes: int = 1000
    seed: int = 0
    minutes: float = 10.0
    churn: float = 0.5
    """The part of the nodes that is replaced in an hour, without a goodbye."""
    loss: float = 0.1
    """The chance of a piece of a stream to be lost, and sent again."""
    least_latency: float = 0.02
    most_latency: float = 0.2
    """Round trips, seconds."""
    bad: float = 0.1
    """The part of the nodes that is silent, slow or lying, a third each."""
    operations: int = 300
    """Stores; each is followed by two gets, at once and after a while."""
    partition: bool = False
    """Whether the swarm is cut in two halves for a minute, half way."""


@dataclass
class Result:
    """How a run went."""

    stores: int = 0
    stored: int = 0
    gets: int = 0
    found: int = 0
    cut_gets: int = 0
    """Gets while the swarm was cut in two, and for ``HEALING`` seconds after; they are not among the others."""
    cut_found: int = 0
    lost: list[str] = field(default_factory=list)
    """Acknowledged records that were not found though an honest node that lives holds them."""
    get_seconds: list[float] = field(default_factory=list)
    store_seconds: list[float] = field(default_factory=list)
    join_seconds: list[float] = field(default_factory=list)
    hops: list[int] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    replaced: int = 0
    unsound: list[str] = field(default_factory=list)
    """What is wrong with routing tables."""
    dead_contacts: float = 0.0
    """The part of all contacts that is dead."""
    wall_seconds: float = 0.0

    @property
    def success(self) -> float:
        """The part of the gets of acknowledged records that found them."""
        return self.found / self.gets if self.gets else math.nan


class Simulation:
    """One run: ``await Simulation(conditions).run()``, under a ``MockClock``."""

    def __init__(self, conditions: Conditions) -> None:
        self.conditions, self.result = conditions, Result()
        self.random = random.Random(conditions.seed)
        least, most = conditions.least_latency / 2, conditions.most_latency / 2
        self.world = World(latency=least, jitter=most - least, loss=conditions.loss, seed=conditions.seed)
        self.honest: list[DHTNode] = []
        self.bad: list[DHTNode] = []
        self._scopes: dict[DHTNode, trio.CancelScope] = {}
        self._hops: list[LookupEnded] = []
        self._cut_from = self._cut_until = math.inf

    async def run(self) -> Result:
        """Grow the swarm, live in it, look at what is left."""
        began = time.perf_counter()
        conditions = self.conditions
        async with trio.open_nursery() as self._nursery:
            await self._grow(conditions.nodes)
            await trio.sleep(60)
            self._say("grown")
            self._hops.clear()
            async with trio.open_nursery() as life:
                if conditions.churn:
                    life.start_soon(self._churn)
                if conditions.partition:
                    life.start_soon(self._cut)
                async with trio.open_nursery() as work:
                    for number in range(conditions.operations):
                        work.start_soon(self._operate, number)
                life.cancel_scope.cancel()
            self.result.hops = [lookup.hops for lookup in self._hops]
            self.result.requests = [lookup.requests for lookup in self._hops]
            self._look_at_tables()
            self._say("through")
            self._nursery.cancel_scope.cancel()
        self.result.wall_seconds = time.perf_counter() - began
        return self.result

    def _say(self, what: str) -> None:
        print(f"{what} at {trio.current_time():.0f} s, calls so far: {self.result.calls}", file=sys.stderr, flush=True)

    async def _grow(self, count: int) -> None:
        await self._join([])
        told = time.perf_counter()
        while len(self.honest) + len(self.bad) < count:
            if time.perf_counter() > told + TELL_EVERY:
                told = time.perf_counter()
                self._say(f"{len(self.honest) + len(self.bad)} nodes")
            async with trio.open_nursery() as nursery:
                for _ in range(min(JOIN_AT_ONCE, count - len(self.honest) - len(self.bad))):
                    nursery.start_soon(self._join, self._three_honest())

    def _three_honest(self) -> list[DHTNode]:
        return self.random.sample(self.honest, min(3, len(self.honest)))

    async def _join(self, through: list[DHTNode]) -> None:
        settings = DHTSettings(cache_locally=False, cache_on_store=False, cache_nearest=0)
        seed, is_bad = self.random.random(), bool(through) and self.random.random() < self.conditions.bad
        node: DHTNode = await self._nursery.start(self._live, settings, random.Random(seed))
        if is_bad:
            turn_bad(node, BEHAVIOURS[len(self.bad) % len(BEHAVIOURS)], random.Random(seed))
        began = trio.current_time()
        if through:
            try:
                await node.bootstrap([peer.protocol.network.visible_maddrs[0] for peer in through])
            except BootstrapError:
                self._kill(node)  # all three have died, or too much was lost: it tries again as another one
                await self._join(self._three_honest())
                return
        self.result.join_seconds.append(trio.current_time() - began)
        (self.bad if is_bad else self.honest).append(node)

    async def _live(self, settings: DHTSettings, chance: random.Random, task_status: trio.TaskStatus[DHTNode]) -> None:
        with trio.CancelScope() as scope:
            async with self.world.network() as network, RPC(network, trace=self._note_call) as rpc:
                node = DHTNode(rpc, settings, clock=now, random=chance, trace=self._hops.append)
                network.set_peer_resolver(node.find_peer)
                async with node:
                    self._scopes[node] = scope
                    task_status.started(node)
                    await trio.sleep_forever()

    def _note_call(self, event: CallStarted | CallEnded) -> None:
        if isinstance(event, CallStarted) and event.outbound:
            self.result.calls[event.method] = self.result.calls.get(event.method, 0) + 1

    def _kill(self, node: DHTNode) -> None:
        """Pull its plug; what it was about to do it does no more."""
        self.world.kill(node.protocol.network)  # type: ignore[arg-type]  # all networks here are in memory
        self._scopes[node].cancel()

    async def _churn(self) -> None:
        rate = self.conditions.churn * self.conditions.nodes / 3600
        while True:
            await trio.sleep(self.random.expovariate(rate))
            nodes = self.random.choice([self.honest] * 9 + [self.bad]) or self.honest
            self._kill(nodes.pop(self.random.randrange(len(nodes))))
            self.result.replaced += 1
            self._nursery.start_soon(self._join, self._three_honest())

    async def _cut(self) -> None:
        await trio.sleep(30 * self.conditions.minutes)
        networks: list[Any] = [node.protocol.network for node in [*self.honest, *self.bad]]
        self.world.partition(networks[::2], networks[1::2])
        self._cut_from = trio.current_time()
        self._cut_until = self._cut_from + 60 + HEALING
        await trio.sleep(60)
        self.world.heal()

    async def _operate(self, number: int) -> None:
        """Store a record; get it somewhere else at once, and somewhere else after a while."""
        span = 60 * self.conditions.minutes
        await trio.sleep(self.random.random() * span * 0.7)
        key = f"key {number}"
        began = trio.current_time()
        writer = self.random.choice(self.honest)
        stored = await self._unless_it_dies(writer, writer.store(key, number, now() + LASTS))
        if stored is None:
            return
        self.result.stores += 1
        if not stored:
            return
        self.result.stored += 1
        self.result.store_seconds.append(trio.current_time() - began)
        await self._get(key, number)
        await trio.sleep(self.random.random() * span * 0.3)
        await self._get(key, number)

    async def _get(self, key: str, value: int) -> None:
        reader = self.random.choice(self.honest)
        began = trio.current_time()
        found = await self._unless_it_dies(reader, reader.get(key))
        if reader not in self.honest:
            return
        if began <= self._cut_until and trio.current_time() >= self._cut_from:
            self.result.cut_gets += 1
            self.result.cut_found += found is not None and found.value == value
            return
        self.result.gets += 1
        self.result.get_seconds.append(trio.current_time() - began)
        if found is not None and found.value == value:
            self.result.found += 1
        elif any(node.protocol.storage.get(key_id(key), now()) is not None for node in self.honest):
            self.result.lost.append(f"{key}, read by {reader!r} at {trio.current_time():.1f}")

    async def _unless_it_dies(self, node: DHTNode, doing: Awaitable[T]) -> T | None:
        """What a node does, until it is killed."""
        try:
            return await doing
        except NodeClosed:
            return None

    def _look_at_tables(self) -> None:
        alive = {node.protocol.own: node for node in [*self.honest, *self.bad]}
        contacts = dead = 0
        for node in self.honest:
            table = node.protocol.table
            for bucket in table.buckets:
                outside = [each for each in bucket.contacts if not bucket.lower <= each < bucket.upper]
                if outside or len(bucket.contacts) > table.bucket_size:
                    self.result.unsound.append(f"{node!r}: {bucket!r}")
            known = list(table)
            if len({contact.peer for contact in known}) != len(known) or table.own in known:
                self.result.unsound.append(f"{node!r}: a peer twice, or itself")
            contacts += len(known)
            dead += sum(contact not in alive for contact in known)
        self.result.dead_contacts = dead / contacts if contacts else 0.0


def now() -> float:
    """Unix time as the nodes see it."""
    return EPOCH + trio.current_time()


def simulate(conditions: Conditions) -> Result:
    """Run a simulation in a virtual clock of its own. Replays only where ``PYTHONHASHSEED`` is set."""
    internals: Any = sys.modules["trio._core._run"]
    internals._ALLOW_DETERMINISTIC_SCHEDULING = True  # trio shuffles tasks otherwise
    internals._r.seed(conditions.seed)
    gc.set_threshold(100_000, 50, 50)  # nearly all that a swarm allocates lives on: looking for garbage is a quarter
    return trio.run(Simulation(conditions).run, clock=trio.testing.MockClock(autojump_threshold=0))


def command(conditions: Conditions) -> str:
    """The command that runs this again."""
    options = []
    for each in dataclasses.fields(conditions):
        value, option = getattr(conditions, each.name), "--" + each.name.replace("_", "-")
        if value != each.default:
            options.append(option if value is True else f"{option} {value}")
    return " ".join(["PYTHONHASHSEED=0 .venv/bin/python -m benchmarks.simulation", *options])


def main() -> None:
    """Run one simulation, print its result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    for each in dataclasses.fields(Conditions):
        option = "--" + each.name.replace("_", "-")
        if each.default is False:
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=type(each.default), default=each.default)
    conditions = Conditions(**vars(parser.parse_args()))
    result = simulate(conditions)
    print(json.dumps({"conditions": dataclasses.asdict(conditions), **dataclasses.asdict(result)}))


if __name__ == "__main__":
    main()
