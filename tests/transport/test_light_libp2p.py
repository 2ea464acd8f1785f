"""What a process loads of libp2p, and that all of it is there for who asks. Each test is a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"aioquic", "httpx", "websockets", "dns", "aiortc", "OpenSSL", "trio_websocket"}


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_node_loads_none_of_what_it_does_not_use():
    loaded = run(
        "import sys, hivemind_p2p.sync.dht, hivemind_p2p.node, hivemind_p2p.transport.host; print(*sys.modules)"
    ).split()
    assert "libp2p.abc" in loaded
    assert not HEAVY & set(loaded)
    assert not [name for name in loaded if name.startswith("libp2p.transport.")]


@pytest.mark.parametrize(
    "program",
    [
        "from libp2p import new_host",
        "from libp2p.transport.quic.stream import QUICStream; assert QUICStream.__init__ is not object.__init__",
        "from libp2p.transport import TCP; from libp2p.transport.quic.transport import QUICTransport",
        "import libp2p, importlib.resources; assert importlib.resources.files(libp2p).joinpath('abc.py').is_file()",
    ],
)
def test_everything_is_there_for_who_asks(program: str):
    run(f"import hivemind_p2p.transport.host; {program}")


@pytest.mark.parametrize("first", ["import hivemind_p2p.transport.addresses", "import sys"])
def test_the_order_of_imports_does_not_matter(first: str):
    run(f"{first}; from libp2p.pubsub.pubsub import Pubsub; from libp2p import new_host; import hivemind_p2p.node")


def test_a_name_that_is_not_there_is_an_error_as_ever():
    out = run(
        "import hivemind_p2p.transport.host, libp2p\n"
        "for _ in range(2):\n"
        "    try: libp2p.no_such_name\n"
        "    except AttributeError as error: print(error)\n"
    )
    assert out == "module 'libp2p' has no attribute 'no_such_name'\n" * 2
