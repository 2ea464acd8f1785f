"""Asking a node on this machine: who may, what is answered, what is left behind."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import sys
from pathlib import Path

import pytest
import trio

from hivemind_p2p.control import ControlServer, ask_all
from hivemind_p2p.control.place import directory_of
from hivemind_p2p.control.server import may_ask
from hivemind_p2p.errors import ControlError, DialError
from hivemind_p2p.transport.identity import Identity


@pytest.fixture
def directory(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("c") / "nodes"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def server(directory: Path, identity: Identity | None = None) -> ControlServer:
    async def health() -> dict[str, int]:
        return {"peers": 3}

    async def failing() -> None:
        raise DialError("nobody is there")

    peer_id = (identity or Identity.generate()).peer_id

    async def broken() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    return ControlServer(peer_id, {"health": health, "failing": failing, "broken": broken}, directory=directory)


async def test_all_nodes_of_the_user_answer(directory: Path):
    assert await ask_all("health", directory=directory) == []
    one, two = Identity.generate(), Identity.generate()
    async with server(directory, one), server(directory, two):
        answers = await ask_all("health", directory=directory)
        assert sorted(answer.peer_id for answer in answers) == sorted([one.peer_id.base58, two.peer_id.base58])
        assert [(each.pid, each.answer, each.error) for each in answers] == [(os.getpid(), {"peers": 3}, "")] * 2
    assert await ask_all("health", directory=directory) == []
    assert names(directory) == []


async def test_what_it_cannot_answer_it_says(directory: Path):
    async with server(directory):
        [unknown] = await ask_all("weather", directory=directory)
        assert (unknown.answer, "only answers to broken, failing, health" in unknown.error) == (None, True)
        [failed] = await ask_all("failing", directory=directory)
        assert failed.error == "nobody is there"
        [broken] = await ask_all("broken", directory=directory)
        assert broken.error == "OSError: [Errno 24] Too many open files"
        assert await ask_all("health", directory=directory)


@pytest.mark.parametrize(
    "question", [b"\n", b"[]\n", b'{"ask": []}\n', b"\xff" * 5000, b'"ask"\n', b"[" * 1023 + b"\n"]
)
async def test_garbage_is_answered_and_forgotten(directory: Path, question: bytes):
    async with server(directory) as control:
        async with await trio.open_unix_socket(str(control.path)) as stream:
            await stream.send_all(question)
            assert "error" in json.loads(await stream.receive_some())
        assert len(await ask_all("health", directory=directory)) == 1


async def test_nobody_else_gets_to_the_socket(directory: Path):
    async with server(directory) as control:
        assert [mode(path) for path in (directory, control.path)] == [0o700, 0o600]
        if os.geteuid() == 0:  # then we can be somebody else
            connect = "import os, socket, sys; os.setuid(65534); socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
            command = [sys.executable, "-c", connect, str(control.path)]
            done = await trio.run_process(command, capture_stderr=True, check=False)
            assert b"PermissionError" in done.stderr


def test_another_user_is_told_by_the_system(monkeypatch):
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert may_ask(ours)
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        assert may_ask(ours) is (os.getuid() == 0)
        monkeypatch.setattr("struct.unpack", lambda *_: (1, 999, 999))
        assert not may_ask(ours)


@pytest.mark.parametrize("spoil", [lambda path: path.mkdir(mode=0o755), lambda path: path.touch()])
async def test_a_folder_that_others_could_have_made_is_not_used(directory: Path, spoil, caplog):
    spoil(directory)
    async with server(directory) as control:
        assert control.path is None
        assert "nothing" in repr(control)
    assert "cannot ask this node" in caplog.text
    with pytest.raises(ControlError, match="others could put sockets there"):
        await ask_all("health", directory=directory)


async def test_what_a_killed_node_left_is_removed(directory: Path):
    os.mkdir(directory, mode=0o700)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(directory / "dead.sock"))
    assert await ask_all("health", directory=directory) == []
    async with server(directory) as control:
        assert names(directory) == [control.path.name]


async def test_of_two_processes_with_one_identity_the_first_one_answers(directory: Path, caplog):
    identity = Identity.generate()
    async with server(directory, identity) as first:
        async with server(directory, identity) as second:
            assert second.path is None
        assert "another process runs as" in caplog.text
        assert first.path.exists()
        assert len(await ask_all("health", directory=directory)) == 1


async def test_a_path_that_is_too_long_is_said(directory: Path, caplog):
    async with server(directory / ("x" * 100)) as control:
        assert control.path is None
    assert "set control.directory to a shorter one" in caplog.text


def test_the_folder_is_the_users_own(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert directory_of(None) == tmp_path / "hivemind-p2p"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "absent"))
    assert directory_of(None).name == f"hivemind-p2p-{os.geteuid()}"
    assert directory_of(Path("~/nodes")) == Path.home() / "nodes"
