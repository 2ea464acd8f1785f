"""A process that trains and saves until it is killed.

For each line on stdin, a number and a directory, it forks a child, which loads what is there, says ``pid N UPDATES``,
and then ``saved UPDATES`` after each checkpoint. With a number above 0 it kills itself at so many lines of Python in
its next ``save``, in which a file is written in two halves. All weights of its expert equal the number of its updates,
which the reader of a checkpoint can check.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from hivemind_p2p.runtime import BatchTensorDescriptor, Checkpoints, ExpertBackend, ExpertState
from hivemind_p2p.runtime import checkpoints as checkpoints_module
from hivemind_p2p.server.optimizers import SGD

SIZE = 64


def counter() -> ExpertBackend:
    """An expert whose weights grow by one with each update."""
    module = nn.Linear(SIZE, SIZE)
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    optimizer = SGD(module.parameters(), lr=1.0)
    descriptor = BatchTensorDescriptor(SIZE)
    return ExpertBackend("count.0", module, args_schema=[descriptor], outputs_schema=descriptor, optimizer=optimizer)


def write_in_halves(state: ExpertState, path: Path, uid: str) -> None:
    data = state.to_bytes(uid)
    with path.open("wb", buffering=0) as file:
        file.write(data[: len(data) // 2])
        file.write(data[len(data) // 2 :])


def die_at(line: int) -> None:
    """Kill this process at the so-manieth line that it executes here or in the code under test."""
    left = line

    def trace(frame, event, _):
        nonlocal left
        code = frame.f_code
        if code.co_filename not in (__file__, checkpoints_module.__file__) or code.co_name in ("of", "_number"):
            return None  # what only reads
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    ExpertState.write = write_in_halves
    sys.settrace(trace)


def child(directory: str, line: int) -> None:
    torch.set_num_threads(1)
    expert, checkpoints = counter(), Checkpoints(directory, kept=2)
    checkpoints.clean_up()
    checkpoints.load(expert)
    os.write(1, f"pid {os.getpid()} {expert.update_count}\n".encode())
    while True:
        expert.backward(torch.ones(1, SIZE), -torch.ones(1, SIZE))
        state = ExpertState.of(expert)
        if line:
            die_at(line)
        checkpoints.save(expert.name, state)
        sys.settrace(None)
        os.write(1, f"saved {expert.update_count}\n".encode())
        if line:
            os._exit(0)


if __name__ == "__main__":
    for request in sys.stdin:
        number, where = request.strip().split(" ", 1)
        if os.fork() == 0:
            child(where, int(number))
        os.wait()
        os.write(1, b"dead\n")
