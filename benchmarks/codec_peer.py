"""One process of ``benchmarks.codecs``: does what its standard input says, a line each, in either environment."""

import json
import sys
import time


def load(system: str):  # noqa: ANN201 - runs where hivemind's untyped names live
    """Both systems' names for the same two functions."""
    if system == "ours":
        from hivemind_p2p.compression import deserialize_tensor, serialize_tensor
    else:
        from hivemind.compression.serialization import deserialize_torch_tensor as deserialize_tensor
        from hivemind.compression.serialization import serialize_torch_tensor as serialize_tensor
    return serialize_tensor, deserialize_tensor


def main(system: str, torch_threads: int) -> None:
    """Answer ``{"elements", "compression", "repeat"}`` with seconds per call both ways, the error and the bytes."""
    import torch

    torch.set_num_threads(torch_threads)
    serialize, deserialize = load(system)
    tensors = {}
    for line in sys.stdin:
        order = json.loads(line)
        elements, times = order["elements"], ([], [])
        if elements not in tensors:
            tensors[elements] = torch.randn(elements // 1024, 1024, generator=torch.Generator().manual_seed(0))
        tensor = tensors[elements]
        for _ in range(order["repeat"]):
            began = time.perf_counter()
            message = serialize(tensor, order["compression"])
            between = time.perf_counter()
            decoded = deserialize(message)
            times[0].append(between - began)
            times[1].append(time.perf_counter() - between)
        error = float((decoded - tensor).norm() / tensor.norm())
        answer = {"serialize": times[0], "deserialize": times[1], "error": error, "bytes": message.ByteSize()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
