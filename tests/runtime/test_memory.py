"""Memory that the C library holds, where that is glibc."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn

from hivemind_p2p.runtime import BatchTensorDescriptor, ExpertBackend

ARENAS = """
import ctypes, sys, tempfile, threading
from hivemind_p2p.runtime.memory import share_memory_among_threads

def arenas():
    library = ctypes.CDLL(None)
    library.fopen.restype = ctypes.c_void_p
    with tempfile.NamedTemporaryFile("r") as told:
        file = ctypes.c_void_p(library.fopen(told.name.encode(), b"w"))
        library.malloc_info(0, file)
        library.fclose(file)
        return told.read().count("<heap nr=")

share_memory_among_threads()
before, threads, everybody = arenas(), 12, threading.Barrier(12)

def work():
    ctypes.CDLL(None).malloc(50_000)
    everybody.wait(30)

running = [threading.Thread(target=work) for _ in range(threads)]
[each.start() for each in running]
[each.join() for each in running]
print(max(2, before), arenas())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc here")
@pytest.mark.parametrize("said", [None, "8"])
def test_threads_share_two_heaps_unless_somebody_said_otherwise(said):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment |= {} if said is None else {"MALLOC_ARENA_MAX": said}
    done = subprocess.run([sys.executable, "-c", ARENAS], env=environment, check=True, capture_output=True, timeout=60)
    few, now = map(int, done.stdout.split())
    assert now == few if said is None else now == int(said)


def test_a_backward_holds_no_outputs():
    """Of as many bytes as the inputs, which nothing needs when the gradients are there where it begins."""
    held = []

    class Watched(nn.Linear):
        def forward(self, x):
            outputs = super().forward(x)
            made = weakref.ref(outputs)
            outputs.register_hook(lambda _: held.append(made()))
            return outputs

    backend = ExpertBackend(
        "watched.0", Watched(8, 8), args_schema=(BatchTensorDescriptor(8),), outputs_schema=BatchTensorDescriptor(8)
    )
    [_] = backend.gradients(torch.ones(2, 8), torch.ones(2, 8))
    assert held == [None]
