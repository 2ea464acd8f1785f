"""Validators at work: what nodes sign, refuse, find and show."""

from __future__ import annotations

from dataclasses import replace

import pydantic
import pytest

from hivemind_p2p.dht import (
    CompositeValidator,
    DHTRecord,
    Ed25519SignatureValidator,
    RecordValidatorBase,
    RSASignatureValidator,
)
from hivemind_p2p.dht.keys import key_id
from hivemind_p2p.dht.messages import StoreItem
from hivemind_p2p.dht.schema import BytesWithPublicKey, SchemaValidator, StrWithPeerID
from hivemind_p2p.errors import InvalidRecord
from hivemind_p2p.kademlia import SHA1, Verdict
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.wire import msgpack
from tests.dht.swarm import Swarm, holders, now


class Layer(RecordValidatorBase):
    """Puts a letter behind every value."""

    def __init__(self, letter: bytes, priority: int) -> None:
        self.letter, self._priority = letter, priority

    def validate(self, record: DHTRecord) -> bool:
        return record.value.endswith(self.letter)

    def sign_value(self, record: DHTRecord) -> bytes:
        return record.value + self.letter

    def strip_value(self, record: DHTRecord) -> bytes:
        return record.value[:-1]

    @property
    def priority(self) -> int:
        return self._priority


class Broken(RecordValidatorBase):
    def validate(self, record: DHTRecord) -> bool:
        raise LookupError("oh")


class NoSecrets(RecordValidatorBase):
    """A custom rule."""

    def validate(self, record: DHTRecord) -> bool:
        return b"secret" not in record.value


class Metrics(pydantic.BaseModel):
    epoch: int
    loss: dict[StrWithPeerID, float]
    names: dict[BytesWithPublicKey, tuple[str, ...]]
    rate: float = pydantic.Field(ge=0)


def record(key: str, value: object, subkey: object = None) -> DHTRecord:
    return DHTRecord(SHA1.to_bytes(key_id(key)), msgpack.dumps(subkey), msgpack.dumps(value), 1.9e9)


def test_validators_are_worn_like_coats():
    both = CompositeValidator([Layer(b"o", 5), Layer(b"i", 1)])
    plain = DHTRecord(b"k", b"s", b"v", 1.0)
    signed = replace(plain, value=both.sign_value(plain))
    assert signed.value == b"vio"
    assert both.validate(signed)
    assert both.strip_value(signed) == b"v"
    assert not both.validate(replace(signed, value=b"voi"))
    assert not both.validate(replace(signed, value=b"vo"))


def test_a_validator_that_fails_refuses(caplog):
    composite = CompositeValidator([Broken()])
    assert composite.refused_by(record("key", 1)) == "Broken"
    assert "LookupError: oh" in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "subkey", "fits"),
    [
        ("epoch", 5, None, True),
        ("epoch", 5.0, None, False),
        ("epoch", True, None, False),
        ("epoch", "5", None, False),
        ("epoch", {"a": 1}, None, False),  # it would look like subkeys
        ("epoch", 5, "part", False),
        ("rate", 0.5, None, True),
        ("rate", -0.5, None, False),
        ("rate", 1, None, False),
        ("loss", 0.5, "[peer:12D3KooWabc]", True),
        ("loss", 0.5, "nobody", False),
        ("loss", 0.5, None, False),
        ("names", ("a", "b"), b"[owner:ssh-rsa x]", True),
        ("names", ["a", "b"], b"[owner:ssh-rsa x]", False),
        ("other", object, None, True),
    ],
)
def test_schemas(key, value, subkey, fits):
    validator = SchemaValidator(Metrics)
    value = 1 if value is object else value
    assert validator.validate(record(key, value, subkey)) is fits
    assert not validator.validate(replace(record("epoch", 5), value=b"\xc1"))


def test_schemas_stand_beside_each_other():
    class Other(pydantic.BaseModel):
        epoch: str
        mine: int

    strict = SchemaValidator(Metrics, allow_extra_keys=False, prefix="run")
    assert not strict.validate(record("epoch", 5))
    assert strict.validate(record("run_epoch", 5))
    merged = CompositeValidator([strict, SchemaValidator(Other, allow_extra_keys=False, prefix="run")])
    assert len(merged) == 1
    for value in (5, "five"):
        assert merged.validate(record("run_epoch", value))
    assert not merged.validate(record("run_epoch", 5.0))
    assert merged.validate(record("run_mine", 1))
    assert not merged.validate(record("other", 1))
    merged.extend([SchemaValidator(Other, prefix="more")])
    assert merged.validate(record("other", 1))
    assert "<SchemaValidator of 7 keys, others free>" in repr(merged)


async def test_signed_records_go_through_a_swarm_and_forged_ones_do_not(autojump_clock, swarm: Swarm):
    identities = [Identity.generate() for _ in range(3)]
    nodes = [
        await swarm.node(record_validators=[Ed25519SignatureValidator(identity, identity.peer_id)])
        for identity in identities
    ]
    marker = Ed25519SignatureValidator.marker(identities[0].peer_id)
    await nodes[0].store("key", "true", now() + 60, subkey=marker)
    await nodes[0].store("key", "free", now() + 60, subkey="free for all")
    with pytest.raises(InvalidRecord, match="Ed25519SignatureValidator of this node refuses the record of 'key'"):
        await nodes[1].store("key", "forged", now() + 70, subkey=marker)
    plain = await swarm.node()  # has no validators, and stores whatever it is told to
    assert not await plain.store("key", "forged", now() + 70, subkey=marker, exclude_self=True)
    assert await plain.store("key", "forged", now() + 70, subkey=marker)
    for node in nodes:
        found = (await node.get("key", latest=True)).value
        assert {subkey: value for subkey, (value, _) in found.items()} == {marker: "true", "free for all": "free"}


async def test_a_custom_rule_holds_everywhere(autojump_clock, swarm: Swarm):
    nodes = [await swarm.node(record_validators=[NoSecrets()]) for _ in range(3)]
    dumb = await swarm.node()
    assert await dumb.store("key", "a secret", now() + 60)  # by itself only
    assert holders(nodes, key_id("key")) == []
    assert await nodes[0].get("key", latest=True) is None
    assert (await dumb.get("key")).value == "a secret"
    item = StoreItem(key_id("key"), b"\xc0", msgpack.dumps("a secret"), now() + 60)
    assert nodes[0].protocol.records.accept(item, None) is Verdict.INVALID


async def test_of_a_dictionary_only_the_valid_part_is_taken(autojump_clock, swarm: Swarm):
    careful = await swarm.node(record_validators=[NoSecrets()])
    dumb = await swarm.node(join=False)
    await dumb.store("key", "a secret", now() + 60, subkey="bad")
    await dumb.store("key", "open", now() + 60, subkey="good")
    await dumb.bootstrap([careful.protocol.network.visible_maddrs[0]])
    found = (await careful.get("key", latest=True)).value
    assert set(found) == {"good"}
    await dumb.store("key", "open", now() + 60, subkey="new")  # the careful one is handed nothing bad with it
    stored = careful.protocol.storage.get(key_id("key"), now())
    assert {tag for tag, _ in stored.value.items(now())} <= {msgpack.dumps("good"), msgpack.dumps("new")}


async def test_validators_that_come_later_clean_up(autojump_clock, swarm: Swarm):
    node = await swarm.node()
    await node.store("all", "secret", now() + 60)
    await node.store("part", "secret", now() + 60, subkey="bad")
    await node.store("part", "open", now() + 60, subkey="good")
    node.add_validators([NoSecrets()])
    assert await node.get("all") is None
    assert set((await node.get("part")).value) == {"good"}
    assert len(node.protocol.storage) == 1


async def test_a_signed_value_is_shown_without_its_signature(autojump_clock, swarm: Swarm):
    nodes = [await swarm.node(record_validators=[RSASignatureValidator()]) for _ in range(2)]
    subkey = b"me" + RSASignatureValidator().local_public_key
    assert await nodes[0].store("key", {"a": 1}, now() + 60, subkey=subkey)
    assert (await nodes[1].get("key", latest=True)).value[subkey].value == {"a": 1}
    late = await swarm.node(record_validators=[RSASignatureValidator()])
    assert (await late.get("key")).value[subkey].value == {"a": 1}
    assert (await late.get("key")).value[subkey].value == {"a": 1}  # from its cache


async def test_a_node_lends_its_identity_to_a_validator_that_has_none(autojump_clock, swarm: Swarm):
    identity = Identity.generate()
    rpc = await swarm.rpc()
    rpc.network.peer_id = identity.peer_id
    validator = Ed25519SignatureValidator()
    assert "None" in repr(validator)
    from hivemind_p2p.dht import DHTNode

    async with DHTNode(rpc, clock=now, identity=identity, record_validators=[validator]) as node:
        marker = validator.marker(identity.peer_id)
        assert await node.store("key", 1, now() + 60, subkey=marker)
        assert (await node.get("key")).value[marker].value == 1
        raw = node.protocol.storage.get(key_id("key"), now()).value.get(msgpack.dumps(marker), now())
        assert msgpack.loads(raw.value)[0] == 1
