"""Identity files: made once, read forever, never overwritten."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from hivemind_p2p.errors import IdentityError
from hivemind_p2p.transport.identity import Identity

# The test vectors of libp2p's peer-ids specification.
SPEC_ED25519 = bytes.fromhex(
    "080112407e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3"
    "cacf6010f0e42d474fce27e"
)
SPEC_ED25519_PUBLIC = bytes.fromhex("080112201ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e")


def write(path, data, mode=0o600):
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_the_specification_vector_is_read_and_written():
    identity = Identity.from_bytes(SPEC_ED25519)
    assert identity.public_key_bytes == SPEC_ED25519_PUBLIC
    assert identity.to_bytes() == SPEC_ED25519
    assert identity.peer_id.to_bytes() == b"\x00\x24" + SPEC_ED25519_PUBLIC


def test_an_identity_is_made_once_with_its_folder_and_read_again(tmp_path):
    path = tmp_path / "a" / "b" / "identity"
    made = Identity.load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Identity.load_or_create(str(path)).peer_id == made.peer_id
    assert os.listdir(path.parent) == ["identity"]


def test_without_a_path_each_identity_is_new():
    assert Identity.load_or_create(None).peer_id != Identity.load_or_create(None).peer_id


def test_those_who_make_the_same_file_at_once_end_with_one_identity(tmp_path):
    path = tmp_path / "identity"
    with ThreadPoolExecutor(8) as pool:
        ids = {each.peer_id for each in pool.map(Identity.load_or_create, [path] * 32)}
    assert len(ids) == 1
    assert os.listdir(tmp_path) == ["identity"]


def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    made = Identity.load_or_create(tmp_path / "identity")
    assert Identity.load_or_create(tmp_path / "identity").peer_id == made.peer_id
    assert (tmp_path / "identity").stat().st_mode & 0o777 == 0o600


def test_an_rsa_identity_of_the_go_daemon_is_read():
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    der = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    marshalled = b"\x08\x00\x12" + bytes([len(der) & 0x7F | 0x80, len(der) >> 7]) + der
    identity = Identity.from_bytes(marshalled)
    assert identity.peer_id.base58.startswith("Qm")
    assert identity.to_bytes() == marshalled
    key.public_key().verify(identity.sign(b"data"), b"data", padding.PKCS1v15(), hashes.SHA256())


def test_a_signature_can_be_checked_with_the_public_key_in_the_peer_id():
    identity = Identity.generate()
    public = ed25519.Ed25519PublicKey.from_public_bytes(identity.peer_id.to_bytes()[-32:])
    public.verify(identity.sign(b"data"), b"data")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not a libp2p key"),
        (b"hello, I am not a key", "not a libp2p key"),
        (base64.b64encode(SPEC_ED25519), "not a libp2p key"),
        (SPEC_ED25519[:-1], "should have 64 bytes, not 63"),
        (SPEC_ED25519[:-1] + b"\x00", "public half"),
        (b"\x08\x01\x12\x20" + bytes(32), "has 64 bytes"),
        (b"\x08\x02\x12\x20" + bytes(32), "Secp256k1"),
        (b"\x08\x00\x12\x20" + bytes(32), "restore it"),
        (bytes(20_000), "too large"),
    ],
)
def test_a_broken_file_is_named_and_left_as_it_is(tmp_path, content, why):
    path = write(tmp_path / "identity", content)
    with pytest.raises(IdentityError, match=why) as caught:
        Identity.load_or_create(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o602])
def test_a_file_that_others_may_read_is_refused(tmp_path, mode):
    path = write(tmp_path / "identity", SPEC_ED25519, mode)
    with pytest.raises(IdentityError, match=f"chmod 600 {path}"):
        Identity.load_or_create(path)


def test_a_folder_is_not_an_identity(tmp_path):
    with pytest.raises(IdentityError, match="is a folder"):
        Identity.load_or_create(tmp_path)


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path):
    blocking = write(tmp_path / "file", b"")
    with pytest.raises(IdentityError, match="file"):
        Identity.load_or_create(blocking / "identity")


def test_a_folder_that_cannot_be_made_is_named():
    with pytest.raises(IdentityError, match="/proc/nowhere/identity"):
        Identity.load_or_create("/proc/nowhere/identity")


def test_neither_identities_nor_addresses_import_libp2p():
    code = "import sys, hivemind_p2p.transport.identity as i; i.Identity.generate(); assert 'libp2p' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
