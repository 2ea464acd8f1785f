"""``hivemind-p2p dht`` against a running peer."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from hivemind_p2p.cli import app as cli
from hivemind_p2p.cli.dht import make_table, parsed, plain, records, shown
from hivemind_p2p.dht import ValueWithExpiration


@pytest.fixture
def swarm(start_node) -> str:
    return start_node("bootstrap", "--host-maddrs", "/ip4/127.0.0.1/tcp/0").address


def dht(swarm: str, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "hivemind_p2p", "dht", *arguments, "--initial-peers", swarm]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.returncode, done.stdout


def as_json(swarm: str, *arguments: str) -> tuple[int, Any]:
    code, out = dht(swarm, *arguments, "--json")
    return code, json.loads(out)


def test_what_is_put_is_got(swarm: str):
    assert dht(swarm, "put", "key", "[1, 2.5]") == (0, "stored for 300 s\n")
    code, found = as_json(swarm, "get", "key")
    assert (code, found["has_subkeys"]) == (0, False)
    [record] = found["records"]
    assert record["value"] == [1, 2.5]
    assert 200 < record["expires_in_s"] <= 300
    code, answer = as_json(swarm, "put", "key", "older", "--expires-in", "60")
    assert (code, answer["stored"]) == (1, False)
    assert as_json(swarm, "put", "[1, 2]", "a part", "--subkey", "7")[0] == 0
    code, found = as_json(swarm, "get", "[1, 2]")
    assert {record["subkey"]: record["value"] for record in found["records"]} == {7: "a part"}
    code, table = dht(swarm, "get", "[1, 2]")
    assert "subkey" in table
    assert "a part" in table


def test_what_is_not_there_is_exit_1(swarm: str):
    assert as_json(swarm, "get", "nobody's") == (1, {"found": False})
    stranger = "12D3KooWSzyjKBkg2TrVkdoZqcPZXxPrZpF1xwMBmdPAdaB7yZRs"
    assert as_json(swarm, "find-peer", stranger) == (1, {"peer_id": stranger, "addresses": []})


def test_peers_are_found_and_surveyed(swarm: str, start_node):
    other = start_node("bootstrap", "--host-maddrs", "/ip4/127.0.0.1/tcp/0", "--initial-peers", swarm)
    code, out = dht(swarm, "find-peer", other.ready["peer_id"])
    assert (code, other.address in out.splitlines()) == (0, True)
    code, stats = as_json(swarm, "stats")
    assert code == 0
    assert stats["nodes"] == stats["answering"] == 2
    assert abs(stats["clock_offset_s"]) < 1
    assert other.ready["peer_id"] in {peer["peer_id"] for peer in stats["peers"]}
    code, table = dht(swarm, "stats")
    assert "2 nodes, 2 of them answer; their clocks are" in table
    assert other.ready["peer_id"] in table


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["get", "key"], "say which swarm"),
        (["find-peer", "me", "--initial-peers", "nowhere"], "not a multiaddr"),
    ],
)
def test_wrong_arguments_are_explained(capsys, arguments, text):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["dht", *arguments])
    assert exit_.value.code == 1
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value", "hashable"),
    [("5", 5, 5), ('"5"', "5", "5"), ("ffn.0.", "ffn.0.", "ffn.0."), ("[1, [2]]", [1, [2]], (1, (2,)))],
)
def test_words_are_json_where_they_can_be(text, value, hashable):
    assert parsed(text) == value
    assert parsed(text, hashable=True) == hashable


def test_whatever_a_peer_stored_can_be_shown():
    deep: Any = "bottom"
    for _ in range(1000):
        deep = [deep]
    values = [{}, {b"raw": (1, b"x")}, {("a", 1): float("nan")}, float("inf"), deep, "\x1b]0;title\x07", "two\nlines"]
    for value in values:
        has_subkeys, [row] = records(ValueWithExpiration(value, 60.0), 0.0)
        assert not has_subkeys
        json.dumps(plain(row), allow_nan=False)
        make_table("key", ["value"], [[shown(row["value"])]])
    table = make_table("key", ["problem"], [["failed there: \x1b[2J [red]"], ["plain"]])
    assert [str(cell) for cell in table.columns[0].cells] == ["'failed there: \\x1b[2J [red]'", "plain"]
    rows = [plain(value) for value in values]
    assert rows[:4] == [{}, {"b'raw'": [1, "b'x'"]}, {"('a', 1)": "nan"}, "inf"]
    assert shown(values[5]) == repr(values[5])
    assert shown(values[6]) == values[6]
    entry = ValueWithExpiration("value", 50.0)
    assert records(ValueWithExpiration({7: entry}, 50.0), 20.0) == (
        True, [{"subkey": 7, "value": "value", "expires_in_s": 30.0}]
    )  # fmt: skip
