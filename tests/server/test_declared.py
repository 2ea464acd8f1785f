from __future__ import annotations

import pytest
import torch

from hivemind_p2p.errors import MessageTooLarge, SchemaMismatch
from hivemind_p2p.runtime import BatchTensorDescriptor, ExpertBackend
from hivemind_p2p.server.declared import DeclaredTensors
from hivemind_p2p.wire import runtime_pb2


@pytest.fixture
def declared():
    """What a request to a backward pool says: three tensors."""
    module = torch.nn.Bilinear(4, 3, 2)
    backend = ExpertBackend("b.0", module, args_schema=[BatchTensorDescriptor(4), BatchTensorDescriptor(3)])
    return DeclaredTensors(backend.backward_pool)


def tensor(*size, dtype="float32"):
    return runtime_pb2.Tensor(size=size, dtype=dtype)


def test_tensors_that_fit(declared):
    for message in (tensor(5, 4), tensor(5, 3), tensor(5, 2)):
        declared.add(message)
    declared.check_complete()
    assert declared.rows == 5
    declared.check_answer_fits(5 * (4 + 3) * 4, [0, 0])
    with pytest.raises(MessageTooLarge, match="the answer has 140 bytes"):
        declared.check_answer_fits(139, [0, 0])


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([tensor(5, 3)], r"input 0 for b\.0_backward: expected shape \(any, 4\), got \(5, 3\)"),
        ([tensor(5, 4), tensor(6, 3)], "input 1 has batch size 6, but input 0 has 5"),
        ([tensor(5, 4), tensor(5, 3), tensor(5, 2, dtype="float64")], "the gradient of output 0 for .* expected dtype"),
        ([tensor(5, 4), tensor(5, 3), tensor(5, 2), tensor(5, 2)], r"expected 3 tensors for b\.0_backward .*got more"),
        ([tensor(*[1] * 10_000)], "expected 2 dimensions"),
        ([tensor()], "expected 2 dimensions"),
    ],
)  # fmt: skip
def test_tensors_that_do_not(declared, messages, text):
    for message in messages[:-1]:
        declared.add(message)
    with pytest.raises(SchemaMismatch, match=text) as caught:
        declared.add(messages[-1])
    assert len(str(caught.value)) < 400


def test_too_few(declared):
    declared.add(tensor(5, 4))
    with pytest.raises(SchemaMismatch, match="got 1"):
        declared.check_complete()
