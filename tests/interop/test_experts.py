"""hivemind's own client uses our server: its ``RemoteExpert``, its beam search, its ``RemoteMixtureOfExperts``."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from hivemind_p2p import DHT, Server
from hivemind_p2p.server.expert_classes import expert_classes
from hivemind_p2p.wire.compression_type import CompressionType
from tests.interop.process import hivemind_process

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
SIZE = 64


class HivemindClient:
    """The process (the methods of ``Client`` in ``hivemind_client.py``)."""

    def __init__(self, process: subprocess.Popen[str], ready: str) -> None:
        self._process = process
        self.peer_id = json.loads(ready)["result"]

    def do(self, command: str, **arguments):
        self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]


@pytest.fixture(scope="module")
def dht() -> Iterator[DHT]:
    with DHT(start=True, host_maddrs=LOOPBACK) as dht:
        yield dht


@pytest.fixture(scope="module")
def client(dht) -> Iterator[HivemindClient]:
    with hivemind_process("hivemind_client.py", *map(str, dht.get_visible_maddrs())) as (process, ready):
        yield HivemindClient(process, ready)


def train(client, path, uid, inputs, gradient):
    """Outputs and the gradient of the first input, as hivemind's client got them."""
    arrays = {f"input {n}": tensor.numpy() for n, tensor in enumerate(inputs)}
    np.savez(path, gradient=gradient.numpy(), **arrays)
    client.do("train", uid=uid, path=str(path))
    answer = np.load(path)
    return torch.from_numpy(answer["outputs"]), torch.from_numpy(answer["input_gradient"])


def locally(module, inputs, gradient):
    inputs = [inputs[0].clone().requires_grad_(), *inputs[1:]]
    outputs = module(*inputs)
    outputs.backward(gradient)
    return outputs.detach(), inputs[0].grad


def test_unary_and_streamed_calls(client, dht, tmp_path):
    torch.manual_seed(0)
    with Server.create(expert_uids=["ffn.0"], hidden_dim=SIZE, dht=dht, start=True) as server:
        for rows in (3, 40_000, 262_144):  # 768 bytes are one message, 10 and 64 MiB a stream
            module = copy.deepcopy(server.experts["ffn.0"].module)
            inputs, gradient = torch.randn(rows, SIZE), torch.randn(rows, SIZE)
            outputs, input_gradient = train(client, tmp_path / "arrays.npz", "ffn.0", [inputs], gradient)
            expected, expected_gradient = locally(module, [inputs], gradient)
            assert torch.allclose(outputs, expected, atol=1e-5)
            assert torch.allclose(input_gradient, expected_gradient, atol=1e-4)
            assert not torch.equal(module.ffn.weight, server.experts["ffn.0"].module.ffn.weight), "it learned"
        assert server.experts["ffn.0"].update_count == 3


def test_a_client_that_still_sends_hears_why_its_request_failed(client, dht, tmp_path):
    """30 MiB of rows of another length, refused by their first part: the server reads on until the client has heard."""
    with Server.create(expert_uids=["narrow.0"], hidden_dim=SIZE, dht=dht, start=True):
        wide, gradient = torch.randn(80_000, SIZE + 32), torch.randn(80_000, SIZE)
        with pytest.raises(RuntimeError, match=r"P2PHandlerError.*SchemaMismatch"):
            train(client, tmp_path / "arrays.npz", "narrow.0", [wide], gradient)
        outputs, _ = train(client, tmp_path / "arrays.npz", "narrow.0", [wide[:, :SIZE]], gradient)
        assert outputs.shape == gradient.shape


@pytest.mark.parametrize(
    ("compression", "tolerance"),
    [
        ("FLOAT16", 3e-3), ("MEANSTD_16BIT", 3e-3), ("UNIFORM_8BIT", 0.2), ("QUANTILE_8BIT", 0.4),
        ("BLOCKWISE_8BIT", 0.2),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rows", [100, 20_000])
def test_compression(client, dht, tmp_path, compression, tolerance, rows):
    torch.manual_seed(0)
    with Server.create(
        expert_uids=["nop.0"], expert_cls="nop", hidden_dim=SIZE, compression=compression, dht=dht, start=True
    ):
        inputs, gradient = torch.randn(rows, SIZE), torch.randn(rows, SIZE)
        outputs, input_gradient = train(client, tmp_path / "arrays.npz", "nop.0", [inputs], gradient)
    for got, sent in ((outputs, inputs), (input_gradient, gradient)):
        error = (got - sent).abs()
        assert 0 < error.square().mean().sqrt() < tolerance
        assert CompressionType[compression] >= CompressionType.QUANTILE_8BIT or error.max() < 4 * tolerance


def test_two_inputs_one_of_them_bool(client, dht, tmp_path):
    torch.manual_seed(0)
    with Server.create(expert_uids=["tf.0"], expert_cls="transformer", hidden_dim=SIZE, dht=dht, start=True) as server:
        module = server.experts["tf.0"].module.eval()
        inputs = [torch.randn(2, 128, SIZE), torch.zeros(2, 128, dtype=torch.bool)]
        inputs[1][:, 90:] = True
        gradient = torch.randn(2, 128, SIZE)
        expected, expected_gradient = locally(copy.deepcopy(module), inputs, gradient)
        outputs, input_gradient = train(client, tmp_path / "arrays.npz", "tf.0", inputs, gradient)
    assert torch.allclose(outputs, expected, atol=1e-5)
    assert torch.allclose(input_gradient, expected_gradient, atol=1e-4)


def test_found_and_after_withdrawal_found_no_more(client, dht):
    uids = ["grid.0.1", "grid.1.0", "grid.1.2"]
    with DHT(dht.get_visible_maddrs(), start=True, host_maddrs=LOOPBACK) as other:
        kwargs = {"expert_cls": "nop", "hidden_dim": SIZE, "start": True}
        with Server.create(expert_uids=["grid.1.1"], dht=other, **kwargs):
            with Server.create(expert_uids=uids, dht=dht, **kwargs):
                assert client.do("find", uids=[*uids, "grid.1.1", "grid.3.3"]) == [
                    *[dht.peer_id.base58] * 3, other.peer_id.base58, None,
                ]  # fmt: skip
                assert client.do("search", prefix="grid.", grid=[2, 3]) == [
                    "grid.0.1",
                    "grid.1.0",
                    "grid.1.1",
                    "grid.1.2",
                ]
            assert client.do("find", uids=uids) == [None] * 3
            assert client.do("search", prefix="grid.", grid=[2, 3]) == ["grid.1.1"]


def test_a_mixture_learns(client, dht):
    uids = [f"moe.{row}.{column}" for row in range(2) for column in range(2)]
    with Server.create(expert_uids=uids, hidden_dim=16, dht=dht, start=True) as server:
        losses = client.do("train_mixture", prefix="moe.", grid=[2, 2], size=16, steps=10)
        assert losses[-1] < losses[0]
        assert sum(expert.update_count for expert in server.experts.values()) >= 10


@pytest.mark.parametrize("name", ["ffn", "transformer", "nop"])
def test_modules_equal_hiveminds(client, tmp_path, name):
    path = tmp_path / "module.npz"
    client.do("expert_class", name=name, size=32, path=str(path))
    arrays = {key: torch.from_numpy(value) for key, value in np.load(path).items()}
    module = expert_classes[name].module_class(32).eval()
    module.load_state_dict({key[6:]: value for key, value in arrays.items() if key.startswith("state ")})
    inputs = [arrays[key] for key in sorted(arrays) if key.startswith("input ")]
    with torch.no_grad():
        assert torch.allclose(module(*inputs), arrays["outputs"], atol=1e-6)
