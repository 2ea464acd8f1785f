"""What hivemind wrote is read as hivemind reads it; see ``make_golden.py``."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hivemind_p2p.compression import CompressionType, deserialize_tensor, serialize_tensor
from hivemind_p2p.compression.blockwise import dynamic_map
from hivemind_p2p.wire import runtime_pb2

CASES = json.loads(Path(__file__).with_name("golden.json").read_text())


def message_of(case: dict[str, Any]) -> runtime_pb2.Tensor:
    return runtime_pb2.Tensor.FromString(base64.b64decode(case["message"]))


def decoded_by_hivemind(case: dict[str, Any]) -> torch.Tensor:
    raw, dtype = bytearray(base64.b64decode(case["decoded"])), getattr(torch, case["dtype"])
    return (torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)).view(case["shape"])


def case_id(case: dict[str, Any]) -> str:
    return f"{case['compression']}-{case['dtype']}-{'x'.join(map(str, case['shape']))}"


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_hiveminds_messages_are_read_as_hivemind_reads_them(case: dict[str, Any]):
    message, expected = message_of(case), decoded_by_hivemind(case)
    tensor = deserialize_tensor(message)
    assert tensor.requires_grad == message.requires_grad
    # hivemind scales float16 rows in float16, and looks 8-bit values up in the dtype; we are no less precise.
    tolerance = {} if case["dtype"] == "float16" and "MEANSTD" in case["compression"] else {"rtol": 1e-6, "atol": 0}
    torch.testing.assert_close(tensor.detach(), expected, equal_nan=True, **tolerance)


LOSSLESS = [case for case in CASES if case["compression"] in ("NONE", "FLOAT16")]


@pytest.mark.parametrize("case", LOSSLESS, ids=case_id)
def test_what_is_not_ours_to_choose_is_written_to_the_byte_as_hivemind_writes_it(case: dict[str, Any]):
    message = message_of(case)
    tensor = decoded_by_hivemind(case).requires_grad_(message.requires_grad)
    assert serialize_tensor(tensor, message.compression).SerializeToString() == message.SerializeToString()


def test_the_dynamic_map_is_that_of_bitsandbytes():
    cases = [case for case in CASES if case["compression"] == "BLOCKWISE_8BIT"]
    for message in map(message_of, cases):
        blocks = int.from_bytes(message.buffer[:8], "little")
        sent = message.buffer[16 + 4 * blocks :][: 4 * 256]
        assert torch.equal(torch.frombuffer(bytearray(sent), dtype=torch.float32), dynamic_map())
    assert len(cases) == 3


def test_bfloat16_travels_as_two_bytes_where_hiveminds_switch_says_so(monkeypatch: pytest.MonkeyPatch):
    tensor = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    monkeypatch.setenv("USE_LEGACY_BFLOAT16", "0")
    message = serialize_tensor(tensor)
    assert message.buffer.hex() == "c03f00c0"
    assert torch.equal(deserialize_tensor(message), tensor)


def test_every_compression_of_the_wire_has_a_name():
    assert {each.name: each.value for each in CompressionType} == dict(runtime_pb2.CompressionType.items())
