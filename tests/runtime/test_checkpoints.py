"""Checkpoints: loaded, pruned, broken, and written by processes that are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hivemind_p2p.errors import CheckpointError
from hivemind_p2p.runtime import Checkpoints, ExpertState
from hivemind_p2p.server.saving import Saver
from tests.runtime import keeps_saving
from tests.runtime.modules import ffn_backend, same, weights_of


def learn(expert):
    expert.backward(torch.randn(2, 8), torch.randn(2, 8))
    return weights_of(expert.module)


def test_saved_loaded_and_pruned(tmp_path):
    checkpoints, expert = Checkpoints(tmp_path / "made" / "here", kept=2), ffn_backend("odd name/%.3")
    assert checkpoints.load(expert) is None
    assert checkpoints.uids() == []
    for _ in range(5):
        weights = learn(expert)
        newest = checkpoints.save(expert.name, ExpertState.of(expert))
    assert newest.name == "checkpoint_00000005.safetensors"
    assert [path.name for path in checkpoints.of(expert.name)] == [newest.name, "checkpoint_00000004.safetensors"]
    assert sorted(os.listdir(newest.parent)) == ["checkpoint_00000004.safetensors", newest.name]
    assert newest.parent.parent == tmp_path / "made" / "here", "whatever the uid is"
    again = ffn_backend(expert.name)
    assert checkpoints.load(again) == newest
    assert same(again.module.parameters(), weights)
    assert again.update_count == 5
    assert checkpoints.uids() == [expert.name]
    assert repr(checkpoints) == f"<Checkpoints of 1 experts in {tmp_path / 'made' / 'here'}, 2 of each>"


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def test_a_broken_checkpoint_is_passed_over_for_the_one_before_it(tmp_path, caplog):
    checkpoints, expert = Checkpoints(tmp_path), ffn_backend()
    kept = []
    for _ in range(3):
        kept.append(learn(expert))
        checkpoints.save("ffn.0", ExpertState.of(expert))
    newest, middle, oldest = checkpoints.of("ffn.0")
    newest.write_bytes(newest.read_bytes()[:-100])
    again = ffn_backend()
    assert checkpoints.load(again) == middle
    assert same(again.module.parameters(), kept[1])
    assert f"checkpoint {newest} is broken" in caplog.text
    damage(middle)
    assert checkpoints.load(again) == oldest
    oldest.write_bytes(b"")
    before = weights_of(again.module)
    with pytest.raises(CheckpointError, match="Move them away to start anew") as caught:
        checkpoints.load(again)
    for path in (newest, middle, oldest):
        assert str(path) in str(caught.value)
    assert same(again.module.parameters(), before)
    assert checkpoints.save("ffn.0", ExpertState.of(expert)).name == "checkpoint_00000004.safetensors"


def test_the_checkpoint_of_another_kind_of_expert_is_an_error_that_names_it(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save("count.0", ExpertState.of(ffn_backend("count.0")))
    with pytest.raises(CheckpointError, match="start it as it was, or move the checkpoint away") as caught:
        checkpoints.load(keeps_saving.counter())
    assert str(path) in str(caught.value)


def test_what_cannot_be_written(tmp_path):
    state = ExpertState.of(ffn_backend())
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="name another directory"):
        Checkpoints(tmp_path / "file")
    with pytest.raises(CheckpointError, match="at least one"):
        Checkpoints(tmp_path, kept=0)
    (tmp_path / "ffn.0").write_text("")
    with pytest.raises(CheckpointError, match=r"checkpoint_00000001\.safetensors cannot be written"):
        Checkpoints(tmp_path).save("ffn.0", state)


def test_what_cannot_be_looked_for_or_removed(tmp_path):
    expert = ffn_backend("\N{GREEK SMALL LETTER ALPHA}" * 100 + ".0")  # 6 bytes each in the name of a file
    with pytest.raises(CheckpointError, match="too long"):
        Checkpoints(tmp_path).load(expert)
    (tmp_path / "ffn.0" / ".checkpoint_00000001.1.tmp").mkdir(parents=True)  # no file, so it is not ours to remove
    with pytest.raises(CheckpointError, match="checkpoint_00000001"):
        Checkpoints(tmp_path).clean_up()
    with pytest.raises(CheckpointError):
        Saver(Checkpoints(tmp_path), {"ffn.0": ffn_backend()}, period=1).load()
    Checkpoints(tmp_path).lock()  # it was given back


def test_leftovers_are_not_read_and_are_cleaned_up(tmp_path):
    checkpoints, expert = Checkpoints(tmp_path), ffn_backend()
    path = checkpoints.save("ffn.0", ExpertState.of(expert))
    leftover = path.with_name(".checkpoint_00000002.1234.tmp")
    leftover.write_bytes(path.read_bytes()[:1000])
    (path.parent / "notes.txt").write_text("mine")
    assert checkpoints.load(expert) == path
    checkpoints.clean_up()
    assert sorted(os.listdir(path.parent)) == [path.name, "notes.txt"]


@pytest.fixture(scope="module")
def keeper():
    """A process that saves, and functions to send it a number and a directory, and to read a line."""
    if os.name == "nt":
        pytest.skip("forks and kills")
    program = [sys.executable, "-m", keeps_saving.__name__]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:

        def start(directory: Path, line: int = 0) -> tuple[int, int]:
            process.stdin.write(f"{line} {directory}\n".encode())
            _, pid, loaded = process.stdout.readline().split()
            return int(pid), int(loaded)

        yield start, process.stdout.readline
        process.stdin.close()


def check_what_is_there(directory, acknowledged: int) -> None:
    """The newest file is whole, and it is that of the last update that was acknowledged, or of the next."""
    expert, checkpoints = keeps_saving.counter(), Checkpoints(directory, kept=2)
    if acknowledged:
        assert checkpoints.load(expert) == checkpoints.of("count.0")[0], "the newest is whole"
    assert acknowledged <= expert.update_count <= acknowledged + 1
    for weight in expert.module.parameters():
        assert torch.equal(weight, torch.full_like(weight, expert.update_count))


def test_killed_at_any_line_a_restart_has_the_last_complete_one(keeper, tmp_path):
    start, readline = keeper
    acknowledged, line, saved = 0, 0, False
    while not saved:
        line += 1
        _, loaded = start(tmp_path, line)
        assert loaded >= acknowledged
        acknowledged = loaded
        while (said := readline()) != b"dead\n":
            saved, acknowledged = True, int(said.split()[1])
        check_what_is_there(tmp_path, acknowledged)
    assert line > 20, "so many lines it takes to save"
    assert acknowledged > 3
    assert len(Checkpoints(tmp_path).of("count.0")) == 2


def test_killed_at_any_moment_a_restart_has_the_last_complete_one(keeper, tmp_path):
    start, readline = keeper
    chance, acknowledged = random.Random(0), 0
    for _ in range(20):
        pid, loaded = start(tmp_path)
        assert loaded >= acknowledged
        for _ in range(chance.randrange(3)):
            acknowledged = int(readline().split()[1])
        for _ in range(chance.randrange(200_000)):
            pass  # it computes, writes, flushes or renames meanwhile
        os.kill(pid, signal.SIGKILL)
        while (said := readline()) != b"dead\n":
            acknowledged = int(said.split()[1])
        check_what_is_there(tmp_path, acknowledged)
    assert acknowledged >= 10


def test_two_servers_do_not_write_to_one_directory(tmp_path):
    first, second = Checkpoints(tmp_path), Checkpoints(tmp_path)
    first.lock()
    first.lock()
    with pytest.raises(CheckpointError, match="another server saves its experts in"):
        second.lock()
    assert second.uids() == []
    first.unlock()
    second.lock()


def test_who_is_killed_locks_nobody_out(tmp_path):
    program = (
        "import sys; from hivemind_p2p.runtime import Checkpoints; c = Checkpoints(sys.argv[1]); c.lock(); print()"
    )
    command = [sys.executable, "-c", f"{program}; print(flush=True); sys.stdin.read()", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "\n"
        with pytest.raises(CheckpointError, match="give each server a directory of its own"):
            Checkpoints(tmp_path).lock()
        other.kill()
        other.wait()
        Checkpoints(tmp_path).lock()
