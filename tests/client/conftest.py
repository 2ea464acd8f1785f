from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest
import torch

from hivemind_p2p import DHT
from hivemind_p2p.runtime import ExpertBackend
from tests.client.peers import ExpertPeer
from tests.dht.conftest import swarm as swarm


@pytest.fixture(autouse=True)
def torch_settings() -> Iterator[None]:
    """One thread, and the same random numbers every time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def serve() -> Iterator[Callable[[Sequence[ExpertBackend]], ExpertPeer]]:
    """``serve(backends)``: a peer with these experts, all in one swarm."""
    with ExitStack() as stack:
        peers: list[ExpertPeer] = []

        def start(backends: Sequence[ExpertBackend]) -> ExpertPeer:
            peers.append(ExpertPeer(backends, peers[0].maddrs if peers else ()))
            stack.callback(peers[-1].close)
            return peers[-1]

        yield start


@pytest.fixture
def join() -> Iterator[Callable[[ExpertPeer], DHT]]:
    """``join(peer)``: the DHT of a trainer in the swarm of a peer."""
    with ExitStack() as stack:
        yield lambda peer: stack.enter_context(DHT(peer.maddrs, client_mode=True, start=True))
