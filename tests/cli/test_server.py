"""``hivemind-p2p server``: as processes that are told to stop, killed, and wrongly called."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys

import pytest
import torch

from hivemind_p2p import DHT
from hivemind_p2p.cli import app as cli
from hivemind_p2p.errors import TransportError
from hivemind_p2p.runtime import Checkpoints, ExpertState
from hivemind_p2p.sync import portal
from hivemind_p2p.wire.peer_id import PeerID
from tests.server.calls import Caller

LISTEN = ["--host-maddrs", "/ip4/127.0.0.1/tcp/0"]
NOP = ["--expert-cls", "nop", "--hidden-dim", "8", "--optimizer", "none"]
X = torch.ones(2, 8)
SLOW = """
import os, sys, threading
class Watching:
    def __del__(self):
        os.write(1, b"the interpreter ended")
sys.watching = Watching()
print("loading", flush=True)
threading.Event().wait()
"""


def test_two_servers_one_stopped_and_one_killed(start_node):
    stopped = start_node("server", *LISTEN, *NOP, "--expert-uids", "nop.0.0", "nop.0.1")
    peers = ["--initial-peers", *stopped.ready["addresses"]]
    killed = start_node("server", *LISTEN, *NOP, *peers, "--num-experts", "2", "--expert-pattern", "nop.0.[0:4]")
    assert stopped.ready["experts"] == ["nop.0.0", "nop.0.1"]
    assert sorted(killed.ready["experts"]) == ["nop.0.2", "nop.0.3"]
    with DHT([stopped.address, killed.address], start=True, host_maddrs=LISTEN[1:]) as dht:
        for node in (stopped, killed):
            uid, peer_id = node.ready["experts"][0], PeerID.from_base58(node.ready["peer_id"])
            assert dht.get(uid, latest=True).value == node.ready["peer_id"]
            [outputs] = portal().call(Caller(dht.node.rpc, peer_id).unary, "forward", uid, X)
            assert torch.equal(outputs, X)
        assert stopped.stop() == (0, "", "")
        assert dht.get("nop.0.0", latest=True).value is None
        listed = dht.get("nop.0.", latest=True).value
        assert {column: bool(listed[column].value) for column in range(4)} == {0: False, 1: False, 2: True, 3: True}

        killed.process.kill()
        killed.process.wait()
        with pytest.raises(TransportError):
            portal().call(Caller(dht.node.rpc, peer_id).unary, "forward", uid, X)
        assert dht.get(uid).value == killed.ready["peer_id"], "only time can tell that a killed one is gone"


def test_a_killed_server_goes_on_from_its_last_checkpoint(start_node, tmp_path):
    ffn = ["--hidden-dim", "8", "--optimizer", "sgd", "--checkpoint-dir", str(tmp_path), "--checkpoint-period", "0.05"]
    command = ["server", *LISTEN, *ffn, "--expert-pattern", "ffn.[0:4096]"]
    first = start_node(*command)
    [uid] = first.ready["experts"]
    checkpoints = Checkpoints(tmp_path)
    with DHT([first.address], start=True, host_maddrs=LISTEN[1:]) as dht:
        caller = Caller(dht.node.rpc, PeerID.from_base58(first.ready["peer_id"]))
        portal().call(caller.unary, "backward", uid, X, X)
        before = portal().call(caller.unary, "forward", uid, X)
        while ExpertState.read(checkpoints.of(uid)[0], uid).update_count < 1:
            portal().call(caller.info, uid)
        first.process.kill()
        first.process.wait()
    second = start_node(*command)
    assert second.ready["experts"] == [uid], "also when uids are drawn"
    with DHT([second.address], start=True, host_maddrs=LISTEN[1:]) as dht:
        caller = Caller(dht.node.rpc, PeerID.from_base58(second.ready["peer_id"]))
        assert torch.equal(portal().call(caller.unary, "forward", uid, X)[0], before[0])
        portal().call(caller.unary, "backward", uid, X, X)
    assert second.stop() == (0, "", "")
    assert ExpertState.read(checkpoints.of(uid)[0], uid).update_count == 2, "it saves before it stops"


def test_ctrl_c_on_a_terminal(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from hivemind_p2p import register_expert_class\n"
        "register_expert_class('mine', lambda batch, hidden: torch.empty(batch, hidden))(torch.nn.Softmax)\n"
    )
    ours, theirs = pty.openpty()
    own_class = ["--custom-module-path", str(tmp_path / "mine.py"), "--expert-cls", "mine", "--hidden-dim", "1"]
    command = [sys.executable, "-m", "hivemind_p2p", "server", *LISTEN, *own_class, "--optimizer", "none"]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, start_new_session=True) as process:
        os.close(theirs)
        with open(ours, encoding="utf-8") as screen:
            lines = []
            while not lines or "Ctrl-C" not in lines[-1]:
                lines.append(screen.readline().rstrip())
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            assert lines[0].startswith("Server 12D3Koo")
            assert lines[2] == "It hosts 1 expert:"
            assert lines[3].startswith("  mine.")
            assert lines[5].startswith("  dht = hivemind_p2p.DHT(initial_peers=")
            with pytest.raises(OSError, match="Input/output error"):  # nothing more was written
                screen.read(1)


def test_ctrl_c_while_it_joins():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = (
            f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/12D3KooWGRUKGW7mDAjHXwVCHdVtMXLxVyMhLbfSXqfKy7rnWhVz"
        )
        command = [sys.executable, "-m", "hivemind_p2p", "server", *LISTEN, *NOP, "--initial-peers", address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            connection, _ = silent.accept()  # and says nothing to it
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30) == (b"", b"")
            assert process.returncode == 0
            connection.close()


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["server", *LISTEN, "--hidden-dim", "8", *arguments])
    return exit_.value.code


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--expert-cls", "nope"], "there is no expert class 'nope', only ffn, nop, transformer"),
        (["--expert-uids", "ffn"], "'ffn' is not an expert uid"),
        (["--expert-uids", "ffn.0", "--num-experts", "2"], "leave num_experts and expert_pattern away"),
        (["--num-experts", "5", "--expert-pattern", "ffn.[0:4]"], "has 4 uids, which is not enough for 5 experts"),
        (["--device", "tpu"], "device tpu cannot be used"),
        (["--optimizer", "none", "--clip-grad-norm", "1"], "clip_grad_norm = 1.0 has no meaning without an optimizer"),
        (["--checkpoint-period", "5"], "nothing says where: give --checkpoint-dir"),
        (["--optimizer", "lion"], "one of adam, sgd, none"),
        (["--compression", "zip"], "compression = 'zip' is not one of NONE"),
        (["--custom-module-path", "absent.py"], "absent.py is not a Python file"),
        (["--initial-peers", "/ip4/127.0.0.1/tcp/1"], "append /p2p/<peer id>"),
        (["--initial-peers", "nonsense"], "is not a multiaddr"),
    ],
)
def test_wrong_arguments_are_told_and_nothing_is_left_running(capfd, arguments, text):
    before = set(portal()._held)
    assert run(*arguments) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("hivemind-p2p: ")
    assert text in captured.err
    assert "Traceback" not in captured.err
    assert set(portal()._held) == before


def test_nobody_there_and_a_port_in_use(capfd):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        nobody = f"{address}/p2p/12D3KooWGRUKGW7mDAjHXwVCHdVtMXLxVyMhLbfSXqfKy7rnWhVz"
        assert run("--initial-peers", nobody) == 1
        assert address in capfd.readouterr().err
        taken.listen()
        assert run("--host-maddrs", address) == 1
        assert address in capfd.readouterr().err


def test_without_torch_it_says_what_to_install():
    program = """
import sys
sys.modules["torch"] = None
from hivemind_p2p.cli import main
main(["server", "--host-maddrs", "/ip4/127.0.0.1/tcp/0"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "needs torch, which is not installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_is_still_starting_stops_at_once(tmp_path):
    """In the middle of loading what must not see the interpreter end, as torch's C++ must not: it would abort."""
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW)
    command = [sys.executable, "-m", "hivemind_p2p", "server", "--custom-module-path", str(slow), "--no-mdns"]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert (process.stdout.read(), process.stderr.read()) == ("", "")
