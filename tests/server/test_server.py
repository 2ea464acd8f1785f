"""``Server``: real nodes on loopback."""

from __future__ import annotations

import gc
import socket
import threading
from functools import partial

import pytest
import torch
from torch import nn

from hivemind_p2p import DHT, ExpertBackend, Server, background_server
from hivemind_p2p.dht import get_dht_time
from hivemind_p2p.errors import (
    BootstrapError,
    CheckpointError,
    ConfigError,
    ExpertNotFound,
    InvalidUID,
    ListenError,
    NodeClosed,
    ProtocolNotSupported,
    RemoteError,
)
from hivemind_p2p.runtime import BatchTensorDescriptor
from hivemind_p2p.sync import portal
from hivemind_p2p.wire.compression_type import CompressionType
from tests.server.calls import Caller

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
SMALL = {"hidden_dim": 8, "host_maddrs": LOOPBACK, "start": True}
X = torch.ones(2, 8)


@pytest.fixture(scope="module")
def first():
    """A peer that serves nothing, and calls those who do."""
    with DHT(start=True, host_maddrs=LOOPBACK) as dht:
        yield dht


@pytest.fixture(scope="module")
def joining(first):
    """Options of a small server in the swarm of ``first``."""
    return {**SMALL, "initial_peers": first.get_visible_maddrs()}


def ask(dht, server, method, *arguments):
    return portal().call(getattr(Caller(dht.node.rpc, server.dht.peer_id), method), *arguments)


def served_by(dht, uid):
    found = dht.get(uid, latest=True)
    return found and found.value


def test_several_devices_share_the_experts(first, joining):
    with Server.create(num_experts=3, device=["cpu:0", "cpu:1"], **joining) as server:
        assert sorted(len(runtime.backends) for runtime in server._held.value()) == [1, 2]
        for uid, expert in server.experts.items():
            [outputs] = ask(first, server, "unary", "forward", uid, X)
            assert torch.equal(outputs, expert.module(X))


def test_experts_are_declared_answer_and_learn(first, joining):
    with Server.create(expert_uids=["ffn.0.0", "ffn.0.1"], **joining) as server:
        assert server.ready.is_set()
        assert server.is_alive()
        assert sorted(server.experts) == ["ffn.0.0", "ffn.0.1"]
        assert served_by(first, "ffn.0.1") == server.dht.peer_id.base58
        expert = server.experts["ffn.0.0"]
        [outputs] = ask(first, server, "unary", "forward", "ffn.0.0", X)
        assert torch.equal(outputs, expert.module(X))
        ask(first, server, "stream", "backward", "ffn.0.0", X, X)
        assert expert.update_count == 1
        assert not torch.equal(outputs, expert.module(X))
        assert ask(first, server, "info", "ffn.0.1")["outputs_schema"].size == (None, 8)
        with pytest.raises(ExpertNotFound, match=r"only ffn\.0\.0, ffn\.0\.1"):
            ask(first, server, "info", "ffn.0.2")
        assert repr(server).startswith("<Server of 2 experts, ready: <ConnectionHandler of 2 experts")
    assert not server.is_alive()
    assert not server.ready.is_set()
    assert not server.dht.is_alive()
    assert repr(server).startswith("<Server of 2 experts, not running")
    assert served_by(first, "ffn.0.0") is None
    server.shutdown()
    server.join(10)
    with pytest.raises(NodeClosed, match="started before"):
        server.run_in_background()


def test_servers_draw_different_uids(first, joining):
    pattern = {"num_experts": 4, "expert_pattern": "grid.[0:2].[0:4]"}
    with Server.create(**pattern, **joining) as one, Server.create(**pattern, **joining) as two:
        assert sorted([*one.experts, *two.experts]) == [
            f"grid.{row}.{column}" for row in range(2) for column in range(4)
        ]
        with pytest.raises(ConfigError, match=r"only 0 of the 8 uids like grid\.0\.0"):
            Server.create(**pattern, **joining)
    with Server.create(expert_cls="nop", **joining) as server:
        [uid] = server.experts
        assert uid.startswith("nop.")
        assert torch.equal(ask(first, server, "unary", "forward", uid, X)[0], X)


def test_a_dht_of_yours_stays_yours(first):
    with DHT(first.get_visible_maddrs(), start=False, host_maddrs=LOOPBACK) as dht:
        with Server.create(expert_uids=["mine.0"], hidden_dim=8, dht=dht, start=True):
            with pytest.raises(ConfigError, match="hosts a server already"):
                Server.create(expert_uids=["mine.1"], hidden_dim=8, dht=dht, start=True)
            assert served_by(first, "mine.0") == dht.peer_id.base58
        assert dht.is_alive()
        assert served_by(first, "mine.0") is None
        with Server.create(expert_uids=["mine.0"], hidden_dim=8, dht=dht, start=True) as again:
            assert served_by(first, "mine.0") == dht.peer_id.base58
            ask(first, again, "info", "mine.0")
        with pytest.raises(ProtocolNotSupported):
            ask(first, again, "info", "mine.0")
        with pytest.raises(ConfigError, match="host_maddrs: give these to the dht"):
            Server.create(expert_uids=["mine.0"], dht=dht, start=True, host_maddrs=LOOPBACK)


def test_a_server_of_your_own_experts(first):
    module = nn.Linear(8, 3)
    experts = {"own.0": ExpertBackend("own.0", module, args_schema=[BatchTensorDescriptor(8)])}
    dht = DHT(first.get_visible_maddrs(), start=False, host_maddrs=LOOPBACK)
    server = Server(dht, experts, update_period=5)
    assert server.expiration == 10
    assert not server.is_alive()
    server.shutdown()
    server.run_in_background(await_ready=False)
    assert server.ready.wait(10)
    assert torch.equal(ask(first, server, "unary", "forward", "own.0", X)[0], module(X))
    server.shutdown()
    assert dht.is_alive()
    dht.shutdown()
    with pytest.raises(ConfigError, match=r"named own\.0 is given as own\.1"):
        Server(dht, {"own.1": experts["own.0"]})
    with pytest.raises(InvalidUID):
        Server(dht, {"own": experts["own.0"]})
    for wrong in ({"update_period": 0}, {"update_period": 30, "expiration": 30}):
        with pytest.raises(ConfigError, match="forgotten between two declarations"):
            Server(dht, experts, **wrong)


def test_optimizers_as_hivemind_takes_them(first, joining):
    with Server.create(expert_uids=["still.0"], optim_cls=None, **joining) as server:
        expert = server.experts["still.0"]
        before = expert.module.ffn.weight.clone()
        ask(first, server, "unary", "backward", "still.0", X, X)
        assert torch.equal(expert.module.ffn.weight, before)
    options = {"optim_cls": partial(torch.optim.SGD, lr=0.25), "clip_grad_norm": 1.0, "compression": "FLOAT16"}
    with Server.create(
        expert_uids=["sgd.0"], scheduler="linear", num_warmup_steps=0, num_training_steps=10, **options, **joining
    ) as server:
        ask(first, server, "unary", "backward", "sgd.0", X, X)
        [group] = server.experts["sgd.0"].optimizer.param_groups
        assert group["lr"] == 0.225
        info = ask(first, server, "info", "sgd.0")
        assert info["outputs_schema"].compression == CompressionType.FLOAT16


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"expert_uids": ["ffn"]}, InvalidUID, "is not an expert uid"),
        ({"expert_uids": ["ffn.0"], "num_experts": 3}, ConfigError, "leave num_experts and expert_pattern away"),
        ({"expert_pattern": "ffn.[4:0]"}, InvalidUID, "a range like"),
        ({"expert_cls": "nope"}, ConfigError, "no expert class 'nope'"),
        ({"hidden_dim": 0}, ConfigError, "must be above 0"),
        ({"min_batch_size": 9, "max_batch_size": 8}, ConfigError, "is above max_batch_size"),
        ({"optimizer": "adagrad"}, ConfigError, "not one of adam"),
        ({"optim_cls": torch.optim.SGD, "lr": 1.0}, ConfigError, "leave optimizer and lr away"),
        ({"optimizer": "none", "clip_grad_norm": 1.0}, ConfigError, "clip_grad_norm = 1.0 has no meaning"),
        ({"optim_cls": None, "delayed_step": True}, ConfigError, "delayed_step = True has no meaning"),
        ({"scheduler": "cosine", "num_warmup_steps": 1}, ConfigError, "'cosine' is not one of none, linear"),
        ({"scheduler": "linear"}, ConfigError, "num_warmup_steps < num_training_steps, not None and None"),
        ({"compression": "zip"}, ConfigError, "compression = 'zip' is not one of"),
        ({"device": "cuda:99"}, ConfigError, "device cuda:99 cannot be used"),
        ({"device": ["cpu", "cpu"]}, ConfigError, "device cpu is given twice"),
        ({"num_handlers": 4}, ConfigError, "one thread answers all requests"),
        ({"checkpoint_dir": __file__}, CheckpointError, "name another directory"),
        ({"checkpoints_kept": 0}, ConfigError, "checkpoints_kept = 0 must be above 0"),
        ({"num_expert": 4}, ConfigError, "is unknown"),
        ({"host_maddrs": ["/ip4/203.0.113.1/tcp/0"]}, ListenError, "203.0.113.1"),
    ],
)  # fmt: skip
def test_bad_arguments(options, error, text):
    before = set(portal()._held)
    with pytest.raises(error, match=text):
        Server.create(**{**SMALL, **options})
    assert set(portal()._held) == before, "nothing was left running"


def test_nobody_there():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}/p2p/12D3KooWGRUKGW7mDAjHXwVCHdVtMXLxVyMhLbfSXqfKy7rnWhVz"
        with pytest.raises(BootstrapError):
            Server.create(**SMALL, initial_peers=[nobody])


class Patient(nn.Module):
    """Computes only when told to."""

    def __init__(self):
        super().__init__()
        self.began, self.enough = threading.Event(), threading.Event()

    def forward(self, x):
        self.began.set()
        assert self.enough.wait(30)
        return x + 1


def test_shutdown_answers_what_is_under_way_and_refuses_the_rest(first):
    module = Patient()
    descriptor = BatchTensorDescriptor(8)
    experts = {"patient.0": ExpertBackend("patient.0", module, args_schema=[descriptor], outputs_schema=descriptor)}
    with DHT(first.get_visible_maddrs(), start=True, host_maddrs=LOOPBACK) as dht:
        server = Server(dht, experts, start=True)
        caller = Caller(first.node.rpc, dht.peer_id)
        answer = portal().submit(caller.unary, "forward", "patient.0", X)
        assert module.began.wait(10)
        stopping = threading.Thread(target=server.shutdown)
        stopping.start()
        refused = None
        while refused is None:
            try:
                portal().call(caller.info, "patient.0")
            except RemoteError as error:
                refused = str(error)
        assert "this server is stopping" in refused
        assert not answer.done()
        module.enough.set()
        assert torch.equal(answer.result(10)[0], X + 1)
        stopping.join(10)
        assert not server.is_alive()


def test_a_server_that_nobody_remembers_goes_on(first, joining):
    server = Server.create(expert_uids=["forgotten.0"], expert_cls="nop", **joining)
    held, caller = server._held, Caller(first.node.rpc, server.dht.peer_id)
    del server
    gc.collect()
    [outputs] = portal().call(caller.unary, "forward", "forgotten.0", X)
    assert torch.equal(outputs, X)
    held.close()


def test_shutdown_after_its_dht_is_gone(joining):
    server = Server.create(expert_uids=["ffn.8"], **joining)
    server.dht.shutdown()
    server.shutdown()
    assert not server.is_alive()


def test_background_server(first, joining):
    del joining["start"]
    with background_server(expert_uids=["background.0"], **joining) as peer:
        assert served_by(first, "background.0") == peer.peer_id.base58
        assert str(peer.addrs[0]).endswith(f"/p2p/{peer.peer_id}")
        with DHT(peer.addrs, start=True, client_mode=True) as other:
            assert served_by(other, "background.0") == peer.peer_id.base58
            assert other.store("key", 1, get_dht_time() + 10)
    assert served_by(first, "background.0") is None
