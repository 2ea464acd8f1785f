"""A server of the real hivemind 1.1.12, as a process that the tests talk to. Run by the Python of ``.venv-interop``.

Says ``{"maddrs": [...]}`` when it is ready, and ends when its standard input does.
"""

import json
import sys
import tempfile

import torch
from hivemind.dht import DHT
from hivemind.moe import ModuleBackend, Server
from hivemind.proto.runtime_pb2 import CompressionType
from hivemind.utils.tensor_descr import BatchTensorDescriptor
from modules import Nested, Wave


def backend(uid: str, module: torch.nn.Module, *, lr: float = 0.0, compression: int = 0) -> ModuleBackend:
    """An expert that takes rows of ``SIZE``; with ``lr`` it learns."""
    rows = BatchTensorDescriptor(SIZE, compression=compression)
    schemas = {"args_schema": (rows,), "outputs_schema": rows}
    if isinstance(module, Nested):
        kwargs = {"scale": rows, "bias": rows}
        schemas = {"args_schema": (rows, BatchTensorDescriptor(dtype=torch.int64)), "kwargs_schema": kwargs}
    optimizer = torch.optim.SGD(module.parameters(), lr=lr) if lr else None
    return ModuleBackend(uid, module, optimizer=optimizer, max_batch_size=2**18, **schemas)


SIZE = 64


def main() -> None:
    torch.set_num_threads(1)
    tempfile.gettempdir()  # hivemind forks while its threads run, and the lock of this is one that they hold
    experts = {f"grid.{i}.{j}": backend(f"grid.{i}.{j}", Wave(SIZE, 2 * i + j)) for i in range(2) for j in range(2)}
    experts |= {f"flat.{i}": backend(f"flat.{i}", Wave(SIZE, i)) for i in range(3)}
    experts["nested.0"] = backend("nested.0", Nested(SIZE))
    experts["learns.0"] = backend("learns.0", Wave(SIZE), lr=0.1)
    for name in CompressionType.keys()[1:]:
        uid = f"{name.lower()}.0"
        experts[uid] = backend(uid, torch.nn.Identity(), compression=CompressionType.Value(name))
    dht = DHT(host_maddrs=["/ip4/127.0.0.1/tcp/0"], start=True)
    server = Server(dht, experts, start=True)
    print(json.dumps({"maddrs": [str(maddr) for maddr in dht.get_visible_maddrs()]}), flush=True)
    sys.stdin.read()
    server.shutdown()
    dht.shutdown()


if __name__ == "__main__":
    main()
