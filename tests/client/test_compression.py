"""How tensors travel: as chosen for each role, as the peer can, as is worth it; and what it cost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hivemind_p2p import Compression, RemoteMixtureOfExperts, get_experts
from hivemind_p2p.client.compression import decide
from hivemind_p2p.client.contacts import contacts_of
from hivemind_p2p.compression import CODECS, CompressionType, OwnCompression
from hivemind_p2p.errors import ConfigError
from hivemind_p2p.runtime import BatchTensorDescriptor
from hivemind_p2p.wire.expert_metadata import read_urgency
from tests.client.peers import backend
from tests.client.test_moe import grid_of, local_mixture, modules_of

INT8, NONE = OwnCompression.BLOCK_INT8, CompressionType.NONE


class Sent:
    """What one peer's server was sent, and answered: the compression of each tensor, by direction."""

    def __init__(self, peer) -> None:
        self.there, self.back, self.timeouts = {}, {}, []
        handler = peer._server._handler
        answer, stream = handler._answer, handler._answer_stream

        async def unary(request, direction, context):
            self.there[direction] = [tensor.compression for tensor in request.tensors]
            self.timeouts.append(read_urgency(request.metadata).timeout)
            response = await answer(request, direction, context)
            self.back[direction] = [tensor.compression for tensor in response.tensors]
            return response

        async def streamed(requests, direction, context):
            async def watched():
                self.there[direction] = []
                async for request in requests:
                    self.there[direction] += [tensor.compression for tensor in request.tensors if tensor.dtype]
                    yield request

            self.back[direction] = []
            async for response in stream(watched(), direction, context):
                self.back[direction] += [tensor.compression for tensor in response.tensors if tensor.dtype]
                yield response

        handler._answer, handler._answer_stream = unary, streamed


@pytest.mark.parametrize("rows", [3, 3000])
def test_each_role_travels_as_chosen(serve, join, rows) -> None:
    peer = serve([backend("ffn.0", nn.Linear(256, 256), 256)])
    sent = Sent(peer)
    how = Compression(
        inputs="block_int8", outputs=INT8, grad_outputs=CompressionType.FLOAT16, grad_inputs="uniform_8bit"
    )
    [expert] = get_experts(join(peer), ["ffn.0"], compression=how)
    x = torch.randn(rows, 256, requires_grad=True)
    y = expert(x)
    torch.testing.assert_close(y, peer.backends["ffn.0"].module(x), atol=0.1, rtol=0.1)
    y.sum().backward()
    assert sent.there == {"forward": [INT8], "backward": [INT8, CompressionType.FLOAT16]}
    assert sent.back == {"forward": [INT8], "backward": [CompressionType.UNIFORM_8BIT]}


def test_the_server_is_told_how_long_the_answer_is_waited_for(serve, join) -> None:
    peer = serve([backend("ffn.0", nn.Linear(4, 4), 4)])
    sent = Sent(peer)
    [expert] = get_experts(join(peer), ["ffn.0"], compression="auto")
    expert._timeouts["forward"] = 30
    expert(torch.zeros(1, 4))
    assert 0 < sent.timeouts[0] <= 30


def test_one_choice_is_for_all_and_integers_travel_as_they_are(serve, join) -> None:
    class Scale(nn.Module):
        def forward(self, x, numbers):
            return x * numbers, numbers

    integers = BatchTensorDescriptor(64, dtype=torch.int64)
    peer = serve([backend("ffn.0", Scale(), 64, integers)])
    sent = Sent(peer)
    [expert] = get_experts(join(peer), ["ffn.0"], compression="BLOCK_INT8")
    x, numbers = torch.randn(5, 64, requires_grad=True), torch.arange(5 * 64).view(5, 64)
    y, same = expert(x, numbers)
    y.sum().backward()
    assert torch.equal(same, numbers)
    assert sent.there == {"forward": [INT8, NONE], "backward": [INT8, NONE, INT8, NONE]}
    assert sent.back == {"forward": [INT8, NONE], "backward": [INT8, NONE]}
    torch.testing.assert_close(x.grad, numbers.float(), atol=2, rtol=0.01)


def test_without_a_choice_it_is_as_the_expert_says_and_exact(serve, join) -> None:
    peer = serve([backend("ffn.0", nn.Linear(256, 256), 256)])
    sent = Sent(peer)
    [expert] = get_experts(join(peer), ["ffn.0"])
    x = torch.randn(3, 256)
    assert torch.equal(expert(x), peer.backends["ffn.0"].module(x))
    assert sent.there == sent.back == {"forward": [NONE]}
    assert contacts_of(expert._dht)._codecs == {}, "nobody was asked"


def test_a_peer_that_does_not_know_gets_what_its_expert_says(serve, join) -> None:
    peer = serve(
        [backend("ffn.0", nn.Linear(256, 256), BatchTensorDescriptor(256, compression=CompressionType.FLOAT16))]
    )
    peer.dht.node.rpc.unregister("ConnectionHandler.rpc_codecs")
    sent = Sent(peer)
    for how, there in (("block_int8", CompressionType.FLOAT16), ("auto", CompressionType.FLOAT16), ("uniform_8bit", 4)):
        [expert] = get_experts(join(peer), ["ffn.0"], compression=how)
        expert(torch.randn(3, 256)).sum().backward()
        assert sent.there["backward"][0] == sent.there["forward"][0] == there
        assert sent.back == {"forward": [NONE], "backward": [CompressionType.FLOAT16]}


def test_auto_follows_the_link(serve, join) -> None:
    """Each direction by itself; at first, while nothing is known, without compression."""
    peer = serve([backend("ffn.0", nn.Identity(), 1024)])
    sent = Sent(peer)
    dht = join(peer)
    [expert] = get_experts(dht, ["ffn.0"], compression="auto")
    contacts, x = contacts_of(dht), torch.randn(256, 1024)
    expert(x)
    assert (sent.there, sent.back) == ({"forward": [NONE]}, {"forward": [NONE]})
    expert(x)  # the server tells how fast the first one came
    assert contacts.upload[peer.dht.peer_id] > 1e6
    assert dht.node.rpc.speeds.of(peer.dht.peer_id) > 1e6
    contacts.upload[peer.dht.peer_id] = 1e5
    dht.node.rpc.speeds._speeds[peer.dht.peer_id] = 1e12
    expert(x)
    assert (sent.there, sent.back) == ({"forward": [INT8]}, {"forward": [NONE]})
    contacts.upload[peer.dht.peer_id] = 1e12
    dht.node.rpc.speeds._speeds[peer.dht.peer_id] = 1e5
    expert(x)
    assert (sent.there, sent.back) == ({"forward": [NONE]}, {"forward": [INT8]})


def test_errors_are_reported(serve, join) -> None:
    peer = serve(grid_of(2, dim=64))
    dht = join(peer)
    moe = RemoteMixtureOfExperts(
        in_features=64, grid_size=(2,), dht=dht, uid_prefix="ffn.", k_best=2, compression="block_int8"
    )
    x = torch.randn(8, 64, requires_grad=True)
    y = moe(x)
    torch.testing.assert_close(y, local_mixture(moe, modules_of(peer), x, 2), atol=0.05, rtol=0.05)
    y.square().sum().backward()
    reports = [call.attempts[0].compressed for call in moe.last_report.forward.calls]
    assert [[(each.role, each.compression) for each in its] for its in reports] == [
        [("input", "BLOCK_INT8"), ("output", "BLOCK_INT8")]
    ] * 2
    measured = [each.error for its in reports for each in its if each.error is not None]
    assert len(measured) == 2, "the first of each side"
    assert all(0.002 < error < 0.02 for error in measured)
    [backward, _] = moe.last_report.backward.calls
    assert [each.role for each in backward.attempts[0].compressed] == ["input", "grad_output", "grad_input"]
    assert contacts_of(dht).errors.codecs["BLOCK_INT8"].largest in measured
    assert peer._server._handler.errors.codecs["BLOCK_INT8"].largest in measured


@pytest.mark.parametrize(
    ("how", "rows"),
    [
        ("block_int8", 16), ("uniform_8bit", 16), ("quantile_8bit", 16),
        ("block_int8", 2048), ("uniform_8bit", 2048), ("quantile_8bit", 2048), ("blockwise_8bit", 2048),
    ],
)  # fmt: skip
def test_eight_bits_are_a_quarter_on_the_socket_both_ways(serve, join, how, rows) -> None:
    """All bytes of the connection, envelopes and negotiation too: hivemind's answers are not compressed at all.
    (BLOCKWISE_8BIT sends its map of 1 KiB with each tensor, and needs more rows than the others.)"""
    peer = serve([backend("ffn.0", nn.Identity(), 1024)])
    dht = join(peer)
    [expert] = get_experts(dht, ["ffn.0"], compression=how)
    x = torch.randn(rows, 1024)
    expert(x)  # connects, and asks what the expert takes and which compressions its peer knows
    calls = []
    for _ in range(4):
        [connection] = dht.node.connections(peer.dht.peer_id)
        before = connection.traffic
        expert(x)
        calls.append([after - its for after, its in zip(connection.traffic, before, strict=True)])
    for each in zip(*calls, strict=True):
        assert min(each) < 0.27 * x.nbytes  # of one that nothing else of the two nodes met


def test_training_with_compression_follows_training_without(serve, join) -> None:
    peer = serve([backend("ffn.0", nn.Linear(64, 64), 64, lr=0.1)])
    module = nn.Linear(64, 64)
    module.load_state_dict(peer.backends["ffn.0"].module.state_dict())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    [expert] = get_experts(join(peer), ["ffn.0"], compression="block_int8")
    for _ in range(20):
        x = torch.randn(32, 64)
        (expert(x) - x).square().mean().backward()
        (module(x) - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(module.weight, peer.backends["ffn.0"].module.weight, atol=1e-3, rtol=0.05)


def test_choices() -> None:
    known = frozenset(map(int, CODECS))
    for ours in (True, False):
        assert decide(None, 10, 1e5, known, ours=ours) is None
        assert decide(INT8, 10, None, known, ours=ours) == INT8
        assert decide(INT8, 10, None, frozenset(), ours=ours) is None
        assert decide("auto", 2**20, 1e5, frozenset(), ours=ours) is None
    assert decide(CompressionType.FLOAT16, 10, None, frozenset(), ours=True) == CompressionType.FLOAT16
    assert decide(CompressionType.FLOAT16, 10, None, frozenset(), ours=False) is None
    assert Compression.of("auto") == Compression("auto", "auto", "auto", "auto")
    assert Compression.of(None).as_the_expert_says
    with pytest.raises(ConfigError, match=r"no compression 'zip', only 'auto', None, NONE, .*BLOCK_INT8"):
        Compression(outputs="zip")
