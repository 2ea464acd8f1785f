"""Signed records: ours, and hivemind's format. Records that cross between nodes are in ``test_validators``."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.dht import (
    CompositeValidator,
    DHTRecord,
    Ed25519SignatureValidator,
    RecordValidatorBase,
    RSASignatureValidator,
)
from hivemind_p2p.dht.keys import key_id
from hivemind_p2p.kademlia import SHA1
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.wire import msgpack

KEY = SHA1.to_bytes(key_id("key"))

# Made once with hivemind 1.1.12:
#   validator = RSASignatureValidator(RSAPrivateKey()); MARKER = validator.local_public_key
#   record = DHTRecord(DHTID.generate("key").to_bytes(), dumps(b"worker" + MARKER), dumps({"loss": 0.5}), 1.9e9)
#   SIGNED = validator.sign_value(record)
MARKER = (
    b"[owner:ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQClt/l+qAjlnec8ijt0t99lVIrrAsr5r6ESLUHKu8X3FQ58UhNyIQ3dh"
    b"Gdy1wj0+W/cfwfR4licGMEOCCU+nhZvrlWQu36KRWlzyCywJl2OYMN2EP0LqQLjSz9doBJMGQzgRRho62kFmd+GQlSLe2OJ1x5AL"
    b"GCmFocfNTxNeLEuQa83/e9qPENw1goCbgr68llGOUsISuffJsAg7kmmtOrSh1/csJrIBPdNMJ3p35pizIEBjwvrx5lyyTkZM55uC"
    b"zky2hkHqePRMyKJu3a60Bbbd8ieBRGwZlHZKEXW5gBl9QUbGi9OwcR0loZLmDp6uAySEeJvxw6uC/4EAG1VHpwJ]"
)
SIGNED = (
    b"\x81\xa4loss\xcb?\xe0\x00\x00\x00\x00\x00\x00[signature:Rlbap2rW8ezBzSAKbvzGAk0LmAY7amP3yi/9ctRu5rPEwsXiuT8pfPseUKhpQzvK/47qO1lFGF"
    b"S2rsHflgF9k0OIM7Pg9T7w1NT/Gs5O8I6nkUVkYCRTmUTUsYBbsK23qyf2k/IW6xSOFVY8cdvhflnF512YRjSKmbPHAqjHWxI48J"
    b"NW1uIw4aErammrHb6jFFFXOETogJbeF6qQrwVQPWXt8QgSl5nBQ3vHsXI4lJQ2wWKVnM03Mg7y6HGGz+TC9n0nzxOTtTXhmCTIH1"
    b"h3hsbrZ5/h8OXgDhauWEwTnDagcWpJerI1ZHY9nFRwHOpqzkk5YgdkjBl47Lnga7aETw==]"
)
HIVEMIND = DHTRecord(KEY, msgpack.dumps(b"worker" + MARKER), SIGNED, 1.9e9)


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def record(subkey: object, value: object = 1, expiration_time: float = 1.9e9) -> DHTRecord:
    return DHTRecord(KEY, msgpack.dumps(subkey), msgpack.dumps(value), expiration_time)


def signed(validator: RecordValidatorBase, unsigned: DHTRecord) -> DHTRecord:
    return replace(unsigned, value=validator.sign_value(unsigned))


def ed25519() -> tuple[Ed25519SignatureValidator, str]:
    identity = Identity.generate()
    return Ed25519SignatureValidator(identity, identity.peer_id), Ed25519SignatureValidator.marker(identity.peer_id)


def test_hivemind_s_signature_is_accepted_and_taken_off(rsa_key):
    validator = RSASignatureValidator(rsa_key)
    assert validator.validate(HIVEMIND)
    assert msgpack.loads(validator.strip_value(HIVEMIND)) == {"loss": 0.5}


@pytest.mark.parametrize(
    "change",
    [
        {"key": SHA1.to_bytes(key_id("other"))},
        {"subkey": msgpack.dumps(b"another" + MARKER)},
        {"value": SIGNED.replace(b"loss", b"gain")},
        {"value": SIGNED[:-4] + b"AAA]"},
        {"value": SIGNED + SIGNED[SIGNED.index(b"[sig") :]},
        {"value": msgpack.dumps({"loss": 0.5})},
        {"value": msgpack.dumps({"loss": 0.5}) + b"[signature:no base64!]"},
        {"expiration_time": 1.95e9},
        {"subkey": msgpack.dumps(b"worker" + MARKER + b"[owner:ssh-rsa somebody else]")},
        {"subkey": msgpack.dumps(b"[owner:not a key]")},
        {
            "subkey": msgpack.dumps(
                b"[owner:ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti]"
            )
        },
    ],
)
def test_a_record_of_hivemind_that_was_changed_is_refused(rsa_key, change):
    assert not RSASignatureValidator(rsa_key).validate(replace(HIVEMIND, **change))


def test_rsa_signs_what_is_ours_and_nothing_else(rsa_key):
    validator = RSASignatureValidator(rsa_key)
    assert validator.validate(signed(validator, record(b"mine" + validator.local_public_key)))
    for other in (record(b"worker" + MARKER), record("nobody's")):
        assert validator.sign_value(other) == other.value
    assert not validator.validate(record(b"worker" + MARKER))
    assert validator.validate(record("nobody's"))
    assert RSASignatureValidator().local_public_key == RSASignatureValidator().local_public_key  # one per process
    assert repr(validator).startswith("<RSASignatureValidator ...")


@given(st.binary(max_size=300), st.floats(1, 2e9))
def test_what_an_identity_signs_is_accepted_and_comes_back(value: bytes, expiration_time: float):
    validator, marker = ed25519()
    mine = record(f"worker {marker}", value, expiration_time)
    sealed = signed(validator, mine)
    assert Ed25519SignatureValidator().validate(sealed)
    assert validator.strip_value(sealed) == mine.value
    # Those who know nothing of it see a tuple.
    assert msgpack.loads(sealed.value) == (value, sealed.value[-64:])


@pytest.mark.parametrize("size", [0, 300, 70_000])
def test_large_values_are_signed(size: int):
    validator, marker = ed25519()
    sealed = signed(validator, record(marker, bytes(size)))
    assert validator.validate(sealed)
    assert msgpack.loads(sealed.value)[0] == bytes(size)


def test_nobody_else_can_write_under_the_marker_of_a_peer():
    (owner, marker), (forger, other_marker) = ed25519(), ed25519()
    sealed = signed(owner, record(marker, "true"))
    forgeries = [
        record(marker, "forged"),
        signed(forger, record(marker, "forged")),
        replace(sealed, value=signed(forger, record(other_marker, "true")).value),
        replace(sealed, value=sealed.value.replace(b"true", b"fals")),
        replace(sealed, expiration_time=2e9),
        replace(sealed, key=SHA1.to_bytes(key_id("other"))),
        replace(sealed, subkey=msgpack.dumps(marker + "2")),
        replace(sealed, subkey=msgpack.dumps(marker + other_marker)),
        record("[peer:12D3KooWNobody]"),
        record("[peer:QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N]"),  # an id that holds no key
        replace(sealed, value=sealed.value[:-1]),
        replace(sealed, value=b""),
    ]
    for forgery in forgeries:
        assert not Ed25519SignatureValidator().validate(forgery), forgery


@given(st.binary(max_size=200))
def test_garbage_under_a_marker_is_refused(value: bytes):
    _, marker = ed25519()
    assert not Ed25519SignatureValidator().validate(replace(record(marker), value=value))


def test_hivemind_passes_over_what_an_identity_signed(rsa_key):
    validator, marker = ed25519()
    sealed = signed(validator, record(marker))
    theirs = RSASignatureValidator(rsa_key)
    assert theirs.validate(sealed)
    assert theirs.strip_value(sealed) == sealed.value


def test_what_looks_like_a_signature_in_a_value_of_nobody_is_left_there(rsa_key):
    validators = CompositeValidator([RSASignatureValidator(rsa_key)])
    plain = record("worker", "they end in [signature:...], mostly")
    assert signed(validators, plain) == plain
    assert validators.validate(plain)
    assert validators.strip_value(plain) == plain.value


def test_both_kinds_at_once(rsa_key):
    identity = Identity.generate()
    ours, theirs = Ed25519SignatureValidator(), RSASignatureValidator(rsa_key)
    for validator in (ours, theirs):
        validator.bind(identity, identity.peer_id)
    both = CompositeValidator([theirs, ours])
    unsigned = record(theirs.local_public_key + ours.marker(identity.peer_id).encode(), "value")
    sealed = replace(unsigned, value=both.sign_value(unsigned))
    assert both.validate(sealed)
    assert both.strip_value(sealed) == unsigned.value
    assert both.refused_by(replace(sealed, value=ours.sign_value(unsigned))) == "RSASignatureValidator"
    assert both.refused_by(replace(sealed, value=theirs.sign_value(unsigned))) == "Ed25519SignatureValidator"


def test_an_identity_that_is_no_ed25519_signs_nothing(rsa_key):
    identity = Identity(rsa_key)
    validator = Ed25519SignatureValidator(identity, identity.peer_id)
    mine = record(validator.marker(identity.peer_id))
    assert validator.sign_value(mine) == mine.value
    assert not validator.validate(mine)
