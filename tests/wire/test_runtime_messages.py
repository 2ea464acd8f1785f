"""The messages of experts are hivemind 1.1.12's. Golden bytes, made with its package from PyPI::

from hivemind.proto import runtime_pb2

tensor = runtime_pb2.Tensor(
    buffer=b"abcd", size=[2, 1], requires_grad=True, dtype="float16", compression=runtime_pb2.FLOAT16, chunks=3
)
print(runtime_pb2.ExpertRequest(uid="ffn.3.7", tensors=[tensor], metadata=b"m").SerializeToString().hex())
"""

from __future__ import annotations

from hivemind_p2p.wire import runtime_pb2

GOLDEN = bytes.fromhex("0a0766666e2e332e3712190a04616263641202020118012207666c6f61743136280230031a016d")


def test_golden_bytes():
    tensor = runtime_pb2.Tensor(
        buffer=b"abcd", size=[2, 1], requires_grad=True, dtype="float16", compression=runtime_pb2.FLOAT16, chunks=3
    )
    request = runtime_pb2.ExpertRequest(uid="ffn.3.7", tensors=[tensor], metadata=b"m")
    assert request.SerializeToString() == GOLDEN
    assert runtime_pb2.ExpertRequest.FromString(GOLDEN) == request
