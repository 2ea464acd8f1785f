"""Experts that outlive their servers: saved while they run and when they stop, and loaded by the next."""

from __future__ import annotations

import pytest
import torch
import trio

from hivemind_p2p import DHT, Server
from hivemind_p2p.errors import CheckpointError, ConfigError
from hivemind_p2p.runtime import Checkpoints, Runtime
from hivemind_p2p.server.saving import Saver
from hivemind_p2p.sync import portal
from tests.runtime.modules import Gate, backend_of, ffn_backend, same, weights_of
from tests.server.calls import Caller

X = torch.ones(2, 8)


@pytest.fixture(scope="module")
def dht():
    with DHT(start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"]) as dht:
        yield dht


def server(dht, directory, **options):
    defaults = {"hidden_dim": 8, "start": True, "checkpoint_dir": directory, "host_maddrs": ["/ip4/127.0.0.1/tcp/0"]}
    return Server.create(**defaults | {"initial_peers": dht.get_visible_maddrs()} | options)


def learn(dht, server, uid):
    portal().call(Caller(dht.node.rpc, server.dht.peer_id).unary, "backward", uid, X, torch.randn(2, 8))
    return weights_of(server.experts[uid].module)


def test_a_server_goes_on_where_the_last_one_stopped(dht, tmp_path):
    two = {"num_experts": 2, "expert_pattern": "kept.[0:1000]"}
    with server(dht, tmp_path, **two) as first:
        uid, other = sorted(first.experts)
        assert Checkpoints(tmp_path).uids() == [uid, other], "they are saved at once"
        weights = learn(dht, first, uid)
    with server(dht, tmp_path, num_experts=3, expert_pattern="kept.[0:1000]") as second:
        assert {uid, other} < set(second.experts), "the uids that are saved, and a new one"
        assert len(second.experts) == 3
        assert same(second.experts[uid].module.parameters(), weights)
        assert second.experts[uid].update_count == 1
        assert len(Checkpoints(tmp_path).of(other)) == 1, "what has not learned is not saved again"
    with pytest.raises(ConfigError, match=r"checkpoints of 3 experts like kept\.0, and only 2 are to be hosted"):
        server(dht, tmp_path, **two)
    with server(dht, tmp_path, expert_pattern="else.[0:9]") as another:
        assert another.experts.keys().isdisjoint([uid, other])
    with pytest.raises(CheckpointError, match="not of an expert like") as raised:
        server(dht, tmp_path, expert_uids=[uid], hidden_dim=16)
    with pytest.raises(ConfigError, match="cannot be used") as raised_too:
        server(dht, tmp_path, expert_uids=[uid], device="cuda:99")
    Checkpoints(tmp_path).lock()  # it is not theirs any more, whoever keeps these errors
    del raised, raised_too


def test_a_broken_checkpoint_costs_one_period(dht, tmp_path, caplog):
    with server(dht, tmp_path, expert_uids=["ffn.0"], checkpoint_period=3600) as first:
        before = weights_of(first.experts["ffn.0"].module)
        learn(dht, first, "ffn.0")
    newest = Checkpoints(tmp_path).of("ffn.0")[0]
    newest.write_bytes(newest.read_bytes()[:-1])
    with server(dht, tmp_path, expert_uids=["ffn.0"]) as second:
        assert same(second.experts["ffn.0"].module.parameters(), before)
    assert f"checkpoint {newest} is broken" in caplog.text


class Watched(Checkpoints):
    """Tells of each time; the first so many fail."""

    def __init__(self, directory, failures=0):
        super().__init__(directory)
        self.failures, self.tried = failures, trio.Event()

    def save(self, uid, state):
        try:
            if self.failures:
                self.failures -= 1
                raise CheckpointError("the disk is full")
            return super().save(uid, state)
        finally:
            trio.from_thread.run_sync(self._tell)

    def _tell(self):
        self.tried.set()
        self.tried = trio.Event()


async def test_it_saves_again_and_again_what_has_learned(tmp_path, caplog):
    expert, idle = ffn_backend("ffn.0"), ffn_backend("ffn.1")
    experts = {"ffn.0": expert, "ffn.1": idle}
    checkpoints = Watched(tmp_path, failures=1)
    saver = Saver(checkpoints, experts, period=1e-3)
    async with Runtime(experts), trio.open_nursery() as nursery:
        tried = checkpoints.tried
        nursery.start_soon(saver.keep_saving)
        with trio.fail_after(30):
            await tried.wait()
            while not all(map(checkpoints.of, experts)):
                await checkpoints.tried.wait()
        assert "could not be saved; trying again" in caplog.text
        for _ in range(3):
            tried = checkpoints.tried
            await expert.backward_pool.submit(X, torch.randn(2, 8))
            with trio.fail_after(30):
                await tried.wait()
        nursery.cancel_scope.cancel()
    assert [len(checkpoints.of(uid)) for uid in experts] == [3, 1]
    again = ffn_backend("ffn.0")
    checkpoints.load(again)
    assert same(again.module.parameters(), expert.module.parameters())
    assert repr(saver).startswith("<Saver of 2 experts every 0.001 s: <Checkpoints of 2 experts in")


async def test_an_expert_that_cannot_be_saved_does_not_keep_others_from_it(tmp_path, caplog):
    experts = {uid: ffn_backend(uid) for uid in ("ffn.0", "ffn.1")}
    (tmp_path / "ffn.0").write_text("no directory")
    checkpoints = Checkpoints(tmp_path)
    async with Runtime(experts):
        await Saver(checkpoints, experts, period=1).save_at_last()
    assert "stopping without having saved all experts: checkpoint" in caplog.text
    assert checkpoints.uids() == ["ffn.1"]


async def test_a_device_that_never_ends_does_not_keep_a_server_from_stopping(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("hivemind_p2p.server.saving.LAST_SAVE_TIMEOUT", 0.01)
    gate = Gate()
    experts = {"test.0": backend_of(gate)}
    saver = Saver(Checkpoints(tmp_path), experts, period=1)
    async with trio.open_nursery() as nursery, Runtime(experts, shutdown_timeout=0.01):
        gate.shut = True
        nursery.start_soon(experts["test.0"].forward_pool.submit, torch.zeros(1, 2))
        await trio.to_thread.run_sync(gate.entered.acquire, True, 30)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await saver.save_at_last()
    gate.may_go.release()
    assert "stopping without having saved all experts" in caplog.text


async def test_a_runtime_that_is_shut_down_saves_nothing(tmp_path, caplog):
    experts = {"ffn.0": ffn_backend()}
    async with Runtime(experts):
        pass
    await Saver(Checkpoints(tmp_path), experts, period=1).save_at_last()
    assert "no Runtime serves ffn.0" in caplog.text
