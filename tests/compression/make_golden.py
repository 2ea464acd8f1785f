"""Writes ``golden.json``: what hivemind 1.1.12 (bitsandbytes 0.45.5, torch 2.13) makes of tensors, and reads from it.

Run by a Python that has these: ``.venv-interop/bin/python tests/compression/make_golden.py``. A case is hivemind's
message (serialized) and what hivemind itself decodes it to (little-endian), both in base64.
"""

import base64
import json
from pathlib import Path

import torch
from hivemind.compression.serialization import deserialize_torch_tensor, serialize_torch_tensor
from hivemind.proto.runtime_pb2 import CompressionType

wave = torch.sin(torch.arange(6000, dtype=torch.float64) ** 1.5) * torch.linspace(0.01, 3, 6000, dtype=torch.float64)
CASES = {
    "NONE": [
        wave[:6].view(2, 3).to(dtype)
        for dtype in (
            torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64,
            torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
        )
    ]
    + [
        torch.arange(5, dtype=torch.uint8), torch.tensor(1.5), torch.tensor(7), torch.zeros(0, 3),
        torch.ones(2, 2, requires_grad=True), torch.arange(6.0).view(2, 3).t(),
    ],
    "FLOAT16": [(wave[:8] * 1e5).view(2, 4).to(dtype) for dtype in (torch.float32, torch.float64, torch.float16)]
    + [torch.tensor([float("nan"), float("inf"), -float("inf")]), torch.tensor(2.5)],
    "MEANSTD_16BIT": [
        (wave[:12].view(2, 2, 3) * 1000 + 5).to(dtype) for dtype in (torch.float32, torch.float64, torch.float16)
    ]
    + [torch.ones(3, 1), wave[:7].float()],
    "UNIFORM_8BIT": [wave[:60].view(3, 20).to(dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)],
    "QUANTILE_8BIT": [wave[:60].view(3, 20).to(dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)],
    "BLOCKWISE_8BIT": [wave[:4200].view(2, 2100).float(), wave[:60].to(torch.bfloat16), wave[:9].to(torch.float16)],
}  # fmt: skip


def raw(tensor: torch.Tensor) -> str:
    octets = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return base64.b64encode(bytes(octets.tolist())).decode()


def case(tensor: torch.Tensor, name: str) -> dict:
    message = serialize_torch_tensor(tensor, CompressionType.Value(name))
    decoded = deserialize_torch_tensor(message)
    assert (decoded.dtype, decoded.shape) == (tensor.dtype, tensor.shape)
    return {
        "compression": name,
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "message": base64.b64encode(message.SerializeToString()).decode(),
        "decoded": raw(decoded),
    }


if __name__ == "__main__":
    cases = [case(tensor, name) for name, tensors in CASES.items() for tensor in tensors]
    lines = ",\n".join(json.dumps(each) for each in cases)
    Path(__file__).with_name("golden.json").write_text(f"[\n{lines}\n]\n")
