"""Large tensors are compressed, sent and decompressed in a pipeline, shown by events: the last part of a tensor is held
back until the other side has decoded the first."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from hivemind_p2p import Compression, get_experts
from hivemind_p2p.client import calls
from hivemind_p2p.compression import CompressionType, OwnCompression, TensorAssembler, deserialize_tensor, in_parts
from hivemind_p2p.compression import serialize_tensor as packed
from hivemind_p2p.server import handler
from tests.client.peers import backend

KINDS = [
    OwnCompression.BLOCK_INT8,
    CompressionType.FLOAT16,
    CompressionType.UNIFORM_8BIT,
    CompressionType.QUANTILE_8BIT,
    CompressionType.BLOCKWISE_8BIT,
]
PATIENCE = 30.0
"""Seconds after which a side that waits for the other in vain goes on, and the test fails."""


class OneWay:
    """From one module, which sends, to another, which receives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sender, receiver) -> None:
        self.decoded = threading.Event()
        self.overlaps: list[bool] = []
        way = self

        class Watched(TensorAssembler):
            def decode_ahead(self) -> None:
                super().decode_ahead()
                way.decoded.set()

        monkeypatch.setattr(receiver, "TensorAssembler", Watched)
        monkeypatch.setattr(sender, "in_parts", self._hold_the_last)

    def _hold_the_last(self, tensor: torch.Tensor, compression: int):
        """Parts as they are; the last one is neither encoded, where a codec leaves it that choice, nor sent before."""
        parts = in_parts(tensor, compression)
        first = next(parts)
        yield first
        for number in range(1, first.chunks):
            if number == first.chunks - 1:
                self.overlaps.append(self.decoded.wait(PATIENCE))
            yield next(parts)


@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_work_on_a_tensor_at_the_same_time(serve, join, monkeypatch, kind) -> None:
    there, back = OneWay(monkeypatch, calls, handler), OneWay(monkeypatch, handler, calls)
    peer = serve([backend("ffn.0", nn.Identity(), 1024)])
    [expert] = get_experts(join(peer), ["ffn.0"], compression=Compression(inputs=kind, outputs=kind))
    x = torch.randn(2500, 1024)
    y = expert(x)
    assert (there.overlaps, back.overlaps) == ([True], [True])
    once = deserialize_tensor(packed(x, kind))
    assert torch.equal(y, deserialize_tensor(packed(once, kind)))
