"""Golden bytes of every message. Those of hivemind were made by it, see ``tests/interop/hivemind_vectors.py``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf import text_format
from google.protobuf.message import Message

from hivemind_p2p.wire import auth_pb2, dht_pb2, kad_pb2, p2pd_pb2, runtime_pb2

MODULES = {"auth": auth_pb2, "dht": dht_pb2, "kad": kad_pb2, "p2pd": p2pd_pb2, "runtime": runtime_pb2}
VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())
PAGE = Path(__file__).parents[2] / "docs/wire.md"


def kind_of(vector: dict[str, str]) -> type[Message]:
    module, _, name = vector["message"].partition(".")
    return getattr(MODULES[module], name)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector['message']} of {vector['whose']}")
def test_bytes(vector: dict[str, str]):
    kind, raw = kind_of(vector), bytes.fromhex(vector["hex"])
    message = text_format.Parse(vector["text"], kind())
    assert message.SerializeToString(deterministic=True) == raw
    assert kind.FromString(raw) == message


def test_every_message_has_a_vector():
    def within(message: Message) -> set[str]:
        names = {message.DESCRIPTOR.full_name}
        for field, value in message.ListFields():
            if field.message_type is not None:
                for each in [value] if isinstance(value, Message) else value:
                    names |= within(each)
        return names

    covered = set().union(*(within(kind_of(each).FromString(bytes.fromhex(each["hex"]))) for each in VECTORS))
    descriptors = [kind for module in MODULES.values() for kind in module.DESCRIPTOR.message_types_by_name.values()]
    assert {kind.full_name for kind in descriptors} <= covered


def test_the_page_shows_them():
    page = PAGE.read_text()
    missing = [each for each in VECTORS if f"`{each['text']}` | `{each['hex']}`" not in page]
    assert not missing
