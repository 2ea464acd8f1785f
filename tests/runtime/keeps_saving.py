"""A process that trains and saves until it is killed: ``keeps_saving.py DIRECTORY``.

For each line on stdin it forks a child, which loads what is there, says ``pid N``, and then ``saved N`` after each
checkpoint. All weights of its expert equal the number of its updates, which the reader of a checkpoint can check.
"""

from __future__ import annotations

import os
import sys

import torch
from torch import nn

from hivemind_p2p.runtime import BatchTensorDescriptor, Checkpoints, ExpertBackend, ExpertState
from hivemind_p2p.server.optimizers import SGD

SIZE = 256


def counter() -> ExpertBackend:
    """An expert whose weights grow by one with each update."""
    module = nn.Linear(SIZE, SIZE)
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    optimizer = SGD(module.parameters(), lr=1.0)
    descriptor = BatchTensorDescriptor(SIZE)
    return ExpertBackend("count.0", module, args_schema=[descriptor], outputs_schema=descriptor, optimizer=optimizer)


def child(directory: str) -> None:
    torch.set_num_threads(1)
    expert, checkpoints = counter(), Checkpoints(directory, kept=2)
    checkpoints.load(expert)
    os.write(1, f"pid {os.getpid()} {expert.update_count}\n".encode())
    while True:
        expert.backward(torch.ones(1, SIZE), -torch.ones(1, SIZE))
        checkpoints.save(expert.name, ExpertState.of(expert))
        os.write(1, f"saved {expert.update_count}\n".encode())


if __name__ == "__main__":
    for _ in sys.stdin:
        if os.fork() == 0:
            child(sys.argv[1])
        os.wait()
        os.write(1, b"dead\n")
