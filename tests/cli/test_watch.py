"""``hivemind-p2p peers --watch``: what changed, line by line, and as a table on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from hivemind_p2p.cli.watch import Changes, _in_words
from hivemind_p2p.control.client import Answer

LISTEN = ["--host-maddrs", "/ip4/127.0.0.1/tcp/0"]


def peer(name: str, *, relay: str | None = None, in_use: bool = True) -> dict[str, Any]:
    path = "direct" if relay is None else "relayed"
    return {"peer_id": name, "path": path, "relay": relay, "address": "/ip4/44.1.1.1/tcp/1", "in_use": in_use}


def node(name: str, *peers: dict[str, Any], error: str = "") -> Answer:
    return Answer(name, 7, list(peers), error)


def events(changes: Changes, *answers: Answer) -> list[tuple[str, ...]]:
    return [
        tuple(str(change[key]) for key in ("node", "event", "peer_id", "path") if key in change)
        for change in changes.saw(answers, 0)
    ]


def test_only_what_changed_is_said():
    changes = Changes()
    assert events(changes) == []
    relayed = node("N", peer("A"), peer("B", relay="R"))
    assert events(changes, relayed) == [
        ("N", "node started"),
        ("N", "connected", "A", "direct"),
        ("N", "connected", "B", "relayed"),
    ]
    assert events(changes, relayed) == []
    both = node("N", peer("A"), peer("B"), peer("B", relay="R", in_use=False))
    assert events(changes, both) == [("N", "path changed", "B", "direct")]
    assert events(changes, node("N", peer("B")), node("M")) == [("N", "disconnected", "A"), ("M", "node started")]
    assert events(changes, node("M")) == [("N", "disconnected", "B"), ("N", "node ended")]
    assert events(changes, node("M", error="it is busy")) == [("M", "node ended")]


def test_changes_are_told_in_words_too():
    [_, connected] = Changes().saw([node("12D3KooWpeer-id8", peer("B", relay="R"))], 0)
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d peer-id8: connected B through the relay R at /ip4/44\.1\.1\.1/tcp/1", _in_words(connected)
    )


@pytest.fixture(autouse=True)
def _own_nodes_only(monkeypatch, tmp_path_factory) -> None:
    monkeypatch.setenv("HIVEMIND_P2P_CONTROL__DIRECTORY", str(tmp_path_factory.mktemp("c") / "nodes"))


def test_programs_are_told_each_change_in_a_line(start_node):
    bootstrap = start_node("bootstrap", *LISTEN)
    watching = start_node("peers", "--watch", "--interval", "0.2")
    assert (watching.ready["event"], watching.ready["node"]) == ("node started", bootstrap.ready["peer_id"])
    other = start_node("bootstrap", *LISTEN, "--initial-peers", bootstrap.address)
    told = [json.loads(watching.process.stdout.readline()) for _ in range(3)]
    assert sorted(each["event"] for each in told) == ["connected", "connected", "node started"]
    other.stop()
    while json.loads(watching.process.stdout.readline())["event"] != "node ended":
        pass
    watching.process.send_signal(signal.SIGINT)
    assert watching.process.wait(30) == 0


def test_on_a_terminal_it_is_a_table_that_goes_away_at_the_end(start_node):
    start_node("bootstrap", *LISTEN)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "hivemind_p2p", "peers", "--watch"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(theirs)
        try:
            assert b"every 2 s; Ctrl-C ends this" in read_until(ours, b"Nobody is connected to it", 60)
            process.send_signal(signal.SIGINT)
            assert b"\x1b[?1049l" in read_until(ours, b"\x1b[?1049l", 30), "the screen as it was before"
            assert process.wait(30) == 0
        finally:
            process.kill()
            os.close(ours)


def read_until(fd: int, wanted: bytes, seconds: float) -> bytes:
    """What a terminal shows, up to and with something."""
    seen, until = b"", time.monotonic() + seconds
    while wanted not in seen and select.select([fd], [], [], max(0.0, until - time.monotonic()))[0]:
        try:
            seen += os.read(fd, 65536)
        except OSError:  # the other end is closed
            break
    return seen
