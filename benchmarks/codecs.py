"""The codecs of tensors, both ways: speed and error on normally distributed numbers, beside hivemind in one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.report import INTEROP_PYTHON, ROOT, Row, markdown, options, publish, systems
from hivemind_p2p.wire.compression_type import CompressionType, OwnCompression


@contextmanager
def peer(system: str, torch_threads: int) -> Iterator[subprocess.Popen[str]]:
    """A process that runs one system's codecs; killed at the end."""
    python = sys.executable if system == "ours" else str(INTEROP_PYTHON)
    process = subprocess.Popen(
        [python, str(ROOT / "benchmarks" / "codec_peer.py"), system, str(torch_threads)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ask(process: subprocess.Popen[str], system: str, order: dict[str, Any]) -> dict[str, Any]:
    """Give one order; what came of it."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(order) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"the process with {system}'s codecs ended with {process.wait()} before it answered {order}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def main() -> None:
    """Alternate between the systems, codec by codec, round by round."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each codec (default: 7)")
    parser.add_argument("--elements", type=int, default=10 * 2**20, help="of the tensor, float32 (default: 10 Mi)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE")
    parser.add_argument("--torch-threads", type=int, default=os.cpu_count(), help="default: one per core")
    arguments = parser.parse_args()
    rows = []
    with ExitStack() as stack:
        peers = {name: stack.enter_context(peer(name, arguments.torch_threads)) for name in systems(arguments.only)}
        for compression in (*CompressionType, *OwnCompression):
            packed = Row(f"{compression.name}: serialize", "M elements/s", better="higher")
            read = Row(f"{compression.name}: deserialize", "M elements/s", better="higher")
            error, size = Row(f"{compression.name}: error", "relative L2"), Row(f"{compression.name}: size", "MiB")
            order = {"elements": arguments.elements, "compression": compression.value}
            here = {
                name: each for name, each in peers.items() if name == "ours" or compression in iter(CompressionType)
            }
            for system, process in here.items():
                ask(process, system, {**order, "repeat": 2})  # what is made once, is made now
            for _ in range(arguments.rounds):
                for system, process in here.items():
                    answer = ask(process, system, {**order, "repeat": 3})
                    packed.add(system, *(arguments.elements / seconds / 1e6 for seconds in answer["serialize"]))
                    read.add(system, *(arguments.elements / seconds / 1e6 for seconds in answer["deserialize"]))
                    error.add(system, answer["error"])
                    size.add(system, answer["bytes"] / 2**20)
            rows += [packed, read, error, size]
    publish(f"codecs, {arguments.elements:,} elements, {arguments.torch_threads} threads", rows, arguments.json)
    if arguments.markdown is not None:
        arguments.markdown.write_text(markdown(rows))


if __name__ == "__main__":
    main()
