from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import torch
from multiaddr import Multiaddr

from hivemind_p2p.rpc import RPC
from hivemind_p2p.server import expert_classes as expert_classes_module
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.memory import MemoryWire
from tests.dht.conftest import swarm

__all__ = ["swarm"]


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """So that tests do not fight for the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
async def pair() -> AsyncIterator[tuple[RPC, RPC]]:
    """Caller and callee on real streams in memory, by the real clock: devices compute by no other."""
    wire = MemoryWire()
    callee_host = Host(
        Identity.generate(), host_maddrs=[Multiaddr("/ip4/10.0.0.1/tcp/4001")], transport=wire.transport("10.0.0.1")
    )
    caller_host = Host(Identity.generate(), transport=wire.transport("10.0.0.2"))
    async with callee_host, caller_host, RPC(caller_host) as caller, RPC(callee_host) as callee:
        caller_host.add_addresses(callee_host.peer_id, callee_host.visible_maddrs)
        yield caller, callee


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expert classes that a test registers are forgotten after it."""
    monkeypatch.setattr(expert_classes_module, "expert_classes", dict(expert_classes_module.expert_classes))
