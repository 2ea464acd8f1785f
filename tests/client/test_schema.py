"""Schemas that experts tell, some of them liars."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.client.schema import ExpertSchema, byte_size, check_gradients
from hivemind_p2p.errors import ProtocolViolation
from hivemind_p2p.wire import msgpack
from hivemind_p2p.wire.tensor_descriptor import TensorDescriptor

FLOATS = TensorDescriptor((None, 4))
INTEGERS = TensorDescriptor((None, 3, 5), dtype="torch.int64")
HONEST = {
    "forward_schema": ((FLOATS, INTEGERS), {"mask": FLOATS}),
    "outputs_schema": {"b": [FLOATS], "a": INTEGERS},
    "keyword_names": ("mask",),
}


def test_an_honest_one() -> None:
    schema = ExpertSchema.parse(msgpack.dumps(HONEST))
    assert schema.info() == HONEST
    assert schema.inputs == (FLOATS, INTEGERS, FLOATS)
    assert schema.outputs == (INTEGERS, FLOATS)
    assert [each.shape for each in schema.empty_outputs()] == [(0, 3, 5), (0, 4)]
    assert byte_size(schema.outputs, 2) == 2 * (15 * 8 + 4 * 4)


@pytest.mark.parametrize(
    "change",
    [
        {"forward_schema": ((), {})},
        {"forward_schema": (FLOATS, {})},
        {"forward_schema": ((FLOATS,), [])},
        {"forward_schema": 3},
        {"forward_schema": ((3,), {})},
        {"forward_schema": ((FLOATS,), {5: FLOATS}), "keyword_names": (5,)},
        {"forward_schema": ((TensorDescriptor(()),), {}), "keyword_names": ()},
        {"outputs_schema": ()},
        {"outputs_schema": None},
        {"outputs_schema": (FLOATS,) * 1025},
        {"outputs_schema": TensorDescriptor((None, None))},
        {"outputs_schema": TensorDescriptor((None, 2**31, 2**31))},
        {"outputs_schema": TensorDescriptor((None, 4), dtype="torch.save")},
        {"outputs_schema": TensorDescriptor((None, 4), dtype="torch.nothing")},
        {"keyword_names": ()},
        {"keyword_names": ("mask", "other")},
        {"keyword_names": "mask"},
        {"keyword_names": None},
    ],
)
def test_liars(change) -> None:
    with pytest.raises(ProtocolViolation, match="not a schema"):
        ExpertSchema.parse(msgpack.dumps(HONEST | change))


@given(st.binary(max_size=64) | st.recursive(st.integers() | st.text(), st.lists).map(repr).map(str.encode))
def test_noise(raw: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        ExpertSchema.parse(raw)


def test_deeper_nesting_than_anybody_needs() -> None:
    deep = FLOATS
    for _ in range(40):
        deep = [deep]
    with pytest.raises(ProtocolViolation):
        ExpertSchema.parse(msgpack.dumps(HONEST | {"outputs_schema": deep}))


def test_an_unknown_dtype_takes_any_tensor() -> None:
    """hivemind's descriptors may leave it out."""
    told = {**HONEST, "forward_schema": ((TensorDescriptor((None, 4), dtype=None),), {}), "keyword_names": ()}
    schema = ExpertSchema.parse(msgpack.dumps(told))
    assert schema.flatten_inputs("ffn.0", [torch.zeros(1, 4, dtype=torch.float64)], {})


def test_gradients_must_be_like_the_inputs_even_where_the_schema_leaves_lengths_open() -> None:
    inputs = [torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64)]
    check_gradients([torch.ones(2, 5), torch.ones(2, dtype=torch.int64)], [*inputs, torch.zeros(2, 7)])
    with pytest.raises(ProtocolViolation, match=r"gradient of input 0 is torch\.float32"):
        check_gradients([torch.ones(2, 6)], inputs)
    with pytest.raises(ProtocolViolation, match=r"gradient of input 1 is torch\.float32"):
        check_gradients([torch.ones(2, 5), torch.ones(2)], inputs)
