"""Descriptors of batched tensors, the check of requests, and what travels of both."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hivemind_p2p.errors import SchemaMismatch
from hivemind_p2p.runtime import BatchTensorDescriptor, ExpertBackend, Schema
from hivemind_p2p.wire import msgpack
from hivemind_p2p.wire.runtime_pb2 import CompressionType

# MSGPackSerializer.dumps(ModuleBackend("t.0", Two(), ...).get_info()) of hivemind 1.1.12 with torch 2.13, its
# ModuleBackend and BatchTensorDescriptor given the same module and arguments as `two_inputs` below (dtype in full).
HIVEMIND_INFO = bytes.fromhex(
    """
    83ae666f72776172645f736368656d61c8017f4092c77c4091c7785188a473697a65c7034092c004a56474797065ad746f7263682e666c6f
    61743332a66c61796f7574ad746f7263682e73747269646564ad72657175697265735f67726164c2aa70696e5f6d656d6f7279c2ab636f6d
    7072657373696f6e02ab6465766963655f74797065c0ac6465766963655f696e646578c082a46d61736bc7735188a473697a65d54091c0a5
    6474797065aa746f7263682e626f6f6ca66c61796f7574ad746f7263682e73747269646564ad72657175697265735f67726164c2aa70696e
    5f6d656d6f7279c2ab636f6d7072657373696f6e00ab6465766963655f74797065c0ac6465766963655f696e646578c0a462696173c77b51
    88a473697a65c7034092c002a56474797065ad746f7263682e666c6f61743332a66c61796f7574ad746f7263682e73747269646564ad7265
    7175697265735f67726164c2aa70696e5f6d656d6f7279c2ab636f6d7072657373696f6e00ab6465766963655f74797065a3637075ac6465
    766963655f696e646578c0ae6f7574707574735f736368656d6182a3696478c7f74092c7775188a473697a65d54091c0a56474797065ab74
    6f7263682e696e743634a66c61796f7574ad746f7263682e73747269646564ad72657175697265735f67726164c2aa70696e5f6d656d6f72
    79c2ab636f6d7072657373696f6e00ab6465766963655f74797065a3637075ac6465766963655f696e646578c0c7795188a473697a65d540
    91c0a56474797065ad746f7263682e666c6f61743332a66c61796f7574ad746f7263682e73747269646564ad72657175697265735f677261
    64c2aa70696e5f6d656d6f7279c2ab636f6d7072657373696f6e00ab6465766963655f74797065a3637075ac6465766963655f696e646578
    c0a36f7574c77b5188a473697a65c7034092c002a56474797065ad746f7263682e666c6f61743332a66c61796f7574ad746f7263682e7374
    7269646564ad72657175697265735f67726164c3aa70696e5f6d656d6f7279c2ab636f6d7072657373696f6e00ab6465766963655f747970
    65a3637075ac6465766963655f696e646578c0ad6b6579776f72645f6e616d6573c70b4092a46d61736ba462696173
    """
)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 2)

    def forward(self, x, *, mask, bias):
        return {"out": self.l(x) * mask.unsqueeze(-1) + bias, "idx": (mask.long(), x.sum(-1))}


def two_inputs() -> ExpertBackend:
    kwargs_schema = {
        "mask": BatchTensorDescriptor(dtype=torch.bool),
        "bias": BatchTensorDescriptor.from_tensor(torch.zeros(1, 2)),
    }
    args_schema = (BatchTensorDescriptor(4, dtype=torch.float32, compression=CompressionType.FLOAT16),)
    return ExpertBackend("t.0", Two(), args_schema=args_schema, kwargs_schema=kwargs_schema)


def test_info_is_what_hivemind_says():
    assert msgpack.dumps(two_inputs().info()) == HIVEMIND_INFO


def test_a_sample_describes_all_batches():
    sample = torch.zeros(7, 3, 2, dtype=torch.float64, requires_grad=True)
    descriptor = BatchTensorDescriptor.from_tensor(sample, compression=CompressionType.FLOAT16)
    assert descriptor == BatchTensorDescriptor(
        3, 2, dtype=torch.float64, device=torch.device("cpu"), requires_grad=True, compression=CompressionType.FLOAT16
    )
    assert descriptor.shape == (None, 3, 2)
    assert descriptor.make_zeros(5).shape == (5, 3, 2)
    assert descriptor.make_zeros(5).dtype == torch.float64
    assert BatchTensorDescriptor.from_tensor(torch.zeros(1).int(), compression=2).compression == 0


def test_size_as_numbers_or_as_a_sequence():
    assert BatchTensorDescriptor(3, 2) == BatchTensorDescriptor((3, 2)) == BatchTensorDescriptor(torch.Size([3, 2]))
    assert BatchTensorDescriptor().size == (None,)


SCHEMA = Schema(
    [BatchTensorDescriptor(4), BatchTensorDescriptor(dtype=torch.int64)], ["input 0", "input mask"]
)  # fmt: skip


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_what_fits(rows):
    assert SCHEMA.check_inputs([torch.zeros(rows, 4), torch.zeros(rows, dtype=torch.int64)]) == rows
    assert SCHEMA.check_inputs(SCHEMA.make_zeros(rows)) == rows


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ([], "expected 2 tensors (input 0, input mask), got 0"),
        ([torch.zeros(5, 4)], "got 1"),
        ([torch.zeros(5, 4)] * 3, "got 3"),
        ([torch.zeros(5, 3), torch.zeros(5).long()], "input 0: expected shape (any, 4), got (5, 3)"),
        ([torch.zeros(5, 4, 1), torch.zeros(5).long()], "input 0: expected 2 dimensions (any, 4), got 3: (5, 4, 1)"),
        ([torch.zeros(5, 4), torch.tensor(5)], "input mask: expected 1 dimensions (any), got 0: ()"),
        ([torch.zeros(5, 4).double(), torch.zeros(5).long()], "expected dtype torch.float32, got torch.float64"),
        ([torch.zeros(5, 4), torch.zeros(6).long()], "input mask has batch size 6, but input 0 has 5"),
        ([torch.zeros(5, 4), torch.zeros(0).long()], "input mask has batch size 0, but input 0 has 5"),
        ([torch.zeros(5, 4), [0] * 5], "input mask is a list, not a tensor"),
        ([torch.zeros(5, 4, device="meta"), torch.zeros(5).long()], "input 0 is a torch.strided tensor on meta"),
        ([torch.zeros(5, 4).to_sparse(), torch.zeros(5).long()], "input 0 is a torch.sparse_coo tensor on cpu"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_words(tensors, why):
    with pytest.raises(SchemaMismatch) as caught:
        SCHEMA.check_inputs(tensors)
    assert why in str(caught.value)


def test_repr():
    assert repr(SCHEMA) == "<Schema: input 0 torch.float32[4], input mask torch.int64[]>"
