"""What ``hivemind-p2p server`` lets one say about its experts, and how they learn as it was said."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise

import pytest
import torch

from hivemind_p2p import DHT
from hivemind_p2p.cli.server import server
from hivemind_p2p.config import HostingSettings
from hivemind_p2p.config_sources import load_settings
from hivemind_p2p.errors import ConfigError
from hivemind_p2p.runtime import Checkpoints, ExpertState
from hivemind_p2p.sync import portal
from hivemind_p2p.wire.peer_id import PeerID
from tests.server.calls import Caller

LISTEN = ["--host-maddrs", "/ip4/127.0.0.1/tcp/0"]
X = torch.ones(2, 8)
LINEAR = {"scheduler": "linear", "num_warmup_steps": 1, "num_training_steps": 3}


@pytest.fixture
def read(command, monkeypatch):
    """``read("--lr", "1")``: the settings with which a server would be started."""
    seen = []
    monkeypatch.setattr("hivemind_p2p.cli.server.run_until_stopped", lambda serve: serve().close())
    monkeypatch.setattr(
        "hivemind_p2p.cli.server.host_experts", lambda settings, as_json: seen.append(settings) or _nothing()
    )

    def read(*arguments: str) -> HostingSettings:
        done = command("server", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return seen.pop().hosting

    return read


async def _nothing() -> None:
    pass


def test_each_setting_has_an_option():
    assert {each.name for each in fields(HostingSettings)} <= inspect.signature(server).parameters.keys()


def test_options_say_what_settings_are(read, tmp_path, monkeypatch):
    assert read() == HostingSettings()
    learning = ["--scheduler", "linear", "--num_warmup_steps", "0", "--num-training-steps", "9", "--delayed-step"]
    computing = ["--max-queue-tasks", "7", "--no-detect-anomalies", "--compile"]
    hosting = read(*learning, *computing, "--gradient-accumulation-steps", "4", "--no-undo-exploded-steps")
    assert hosting == HostingSettings(
        scheduler="linear", num_warmup_steps=0, num_training_steps=9, delayed_step=True, max_queue_tasks=7,
        detect_anomalies=False, compile=True, gradient_accumulation_steps=4, undo_exploded_steps=False,
    )  # fmt: skip
    (tmp_path / "it.toml").write_text("[hosting]\ndelayed_step = true\ngradient_accumulation_steps = 3")
    monkeypatch.setenv("HIVEMIND_P2P_HOSTING__GRADIENT_ACCUMULATION_STEPS", "2")
    hosting = read("--config", str(tmp_path / "it.toml"), "--checkpoint-dir", "d", "--checkpoints-kept", "1")
    assert (hosting.delayed_step, hosting.gradient_accumulation_steps, hosting.checkpoints_kept) == (True, 2, 1)


def test_help_is_in_groups_and_tells_defaults():
    done = subprocess.run(
        [sys.executable, "-m", "hivemind_p2p", "server", "--help"],
        env=os.environ | {"COLUMNS": "80"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    groups = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert groups == ["This node:", "Experts:", "Computing:", "Learning:", "Keeping what was learned:", "This command:"]
    words = " ".join(done.stdout.split())
    assert "--gradient-accumulation-steps <int> Backward batches that are added up for one step. (default: 1)" in words
    assert "all its tensors together. (default: 1073741824, 1 GiB)" in words
    assert "(default: yes) --autocast / --no-autocast" in words


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (LINEAR | {"num_warmup_steps": None}, "num_warmup_steps < num_training_steps, not None and 3"),
        (LINEAR | {"num_training_steps": None}, "not 1 and None"),
        (LINEAR | {"num_warmup_steps": 3}, "not 3 and 3"),
        (LINEAR | {"num_warmup_steps": -1}, "not -1 and 3"),
        (LINEAR | {"scheduler": "none"}, "are of scheduler = 'linear', and there is no scheduler"),
        ({"num_warmup_steps": 1}, "are of scheduler = 'linear'"),
        (LINEAR | {"optimizer": "none"}, "scheduler = 'linear' has no meaning without an optimizer"),
        ({"optimizer": "none", "lr": 0.1}, "lr = 0.1 has no meaning"),
        ({"optimizer": "none", "gradient_accumulation_steps": 2}, "gradient_accumulation_steps = 2 has no meaning"),
        ({"gradient_accumulation_steps": 0}, "must be above 0"),
        ({"scheduler": "cosine"}, "--scheduler: hosting.scheduler = 'cosine' is not one of none, linear"),
    ],
)
def test_what_contradicts_itself_is_refused(given, text):
    with pytest.raises(ConfigError, match=text) as raised:
        load_settings({f"hosting.{name}": value for name, value in given.items()}, environ={})
    assert "--" in str(raised.value)


def test_a_server_learns_as_it_was_told(start_node, tmp_path):
    """Two batches make a step, and with one step of warm-up the first is of no length."""
    schedule = ["--scheduler", "linear", "--num-warmup-steps", "1", "--num-training-steps", "3"]
    node = start_node(
        "server", *LISTEN, "--expert-uids", "ffn.0", "--hidden-dim", "8", "--optimizer", "sgd", *schedule, "--lr", "9",
        "--gradient-accumulation-steps", "2", "--delayed-step", "--no-undo-exploded-steps", "--checkpoint-dir",
        str(tmp_path),
    )  # fmt: skip
    with DHT([node.address], start=True, host_maddrs=LISTEN[1:]) as dht:
        caller = Caller(dht.node.rpc, PeerID.from_base58(node.ready["peer_id"]))
        outputs = [portal().call(caller.unary, "forward", "ffn.0", X)[0]]
        for _ in range(5):
            portal().call(caller.unary, "backward", "ffn.0", X, X)
            outputs.append(portal().call(caller.unary, "forward", "ffn.0", X)[0])
    same = [torch.equal(before, after) for before, after in pairwise(outputs)]
    assert same == [True, True, True, False, True]
    assert node.stop() == (0, "", "")
    assert ExpertState.read(Checkpoints(tmp_path).of("ffn.0")[0], "ffn.0").update_count == 2
