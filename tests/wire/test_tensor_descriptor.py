"""Golden bytes are what hivemind 1.1.12 wrote, from PyPI and with torch 2.13::

from hivemind.proto import runtime_pb2
from hivemind.utils.serializer import MSGPackSerializer
from hivemind.utils.tensor_descr import BatchTensorDescriptor

half = BatchTensorDescriptor.from_tensor(
    torch.empty(3, 1024, dtype=torch.float16, requires_grad=True), compression=runtime_pb2.CompressionType.FLOAT16
)
bare = BatchTensorDescriptor(16)
mask = BatchTensorDescriptor(dtype=torch.bool, device=torch.device("cuda", 1))
info = {"forward_schema": ((half,), {"mask": mask}), "outputs_schema": half, "keyword_names": ("mask",)}
for value in (half, bare, info):
    print(MSGPackSerializer.dumps(value).hex())
"""

from __future__ import annotations

import enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.wire import msgpack
from hivemind_p2p.wire.tensor_descriptor import TensorDescriptor

HALF_HEX = (
    "c77d5188a473697a65c7054092c0cd0400a56474797065ad746f7263682e666c6f61743136a66c61796f7574ad746f7263682e7374726964"
    "6564ad72657175697265735f67726164c3aa70696e5f6d656d6f7279c2ab636f6d7072657373696f6e02ab6465766963655f74797065a363"
    "7075ac6465766963655f696e646578c0"
)
BARE_HEX = (
    "c76b5188a473697a65c7034092c010a56474797065c0a66c61796f7574ad746f7263682e73747269646564ad72657175697265735f677261"
    "64c2aa70696e5f6d656d6f7279c2ab636f6d7072657373696f6e00ab6465766963655f74797065c0ac6465766963655f696e646578c0"
)
MASK_HEX = (
    "c7775188a473697a65d54091c0a56474797065aa746f7263682e626f6f6ca66c61796f7574ad746f7263682e73747269646564ad72657175"
    "697265735f67726164c2aa70696e5f6d656d6f7279c2ab636f6d7072657373696f6e00ab6465766963655f74797065a463756461ac646576"
    "6963655f696e64657801"
)
INFO_HEX = (
    f"83ae666f72776172645f736368656d61c801054092c7814091{HALF_HEX}81a46d61736b{MASK_HEX}ae6f7574707574735f736368656d61"
    f"{HALF_HEX}ad6b6579776f72645f6e616d6573c7064091a46d61736b"
)
HALF = TensorDescriptor((None, 1024), "torch.float16", requires_grad=True, compression=2)
BARE = TensorDescriptor((None, 16), dtype=None, device_type=None)
MASK = TensorDescriptor((None,), "torch.bool", device_type="cuda", device_index=1)
INFO = {"forward_schema": ((HALF,), {"mask": MASK}), "outputs_schema": HALF, "keyword_names": ("mask",)}


@pytest.mark.parametrize(("value", "packed"), [(HALF, HALF_HEX), (BARE, BARE_HEX), (MASK, MASK_HEX), (INFO, INFO_HEX)])
def test_golden_bytes(value: object, packed: str):
    assert msgpack.dumps(value).hex() == packed
    assert msgpack.loads(bytes.fromhex(packed)) == value


@given(
    st.builds(
        TensorDescriptor,
        size=st.lists(st.none() | st.integers(0, 2**63 - 1), max_size=64).map(tuple),
        dtype=st.none() | st.text(),
        layout=st.none() | st.text(),
        device_type=st.none() | st.text(),
        device_index=st.none() | st.integers(-(2**63), 2**63 - 1),
        requires_grad=st.booleans(),
        pin_memory=st.booleans(),
        compression=st.integers(0, 5),
    )
)
def test_a_descriptor_comes_back_as_what_it_was(descriptor: TensorDescriptor):
    assert msgpack.loads(msgpack.dumps(descriptor)) == descriptor


def test_an_enumeration_travels_as_its_number():
    named = TensorDescriptor((None,), compression=enum.IntEnum("Kind", {"FLOAT16": 2}).FLOAT16)
    assert msgpack.loads(msgpack.dumps(named)) == named


def test_keys_of_later_versions_are_passed_over_and_missing_ones_have_defaults():
    assert TensorDescriptor.from_map({"size": (None, 2), "scale": 3.0}) == TensorDescriptor((None, 2))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"size": 3},
        {"size": (None, -1)},
        {"size": (None, 2**63)},
        {"size": (True,)},
        {"size": (1.0,)},
        {"size": (1,) * 65},
        {"size": (1,), "dtype": b"torch.float32"},
        {"size": (1,), "dtype": 1},
        {"size": (1,), "compression": True},
        {"size": (1,), "requires_grad": None},
    ],
)
def test_what_is_no_descriptor_is_refused(fields: dict):
    with pytest.raises(ValueError, match="tensor descriptor"):
        TensorDescriptor.from_map(fields)


@pytest.mark.parametrize("inner", [b"\x90", b"\xc0", b"\x81\xa4size\x90\x01", b"\x81\xa4size\x05", b""])
def test_bad_bytes_are_refused(inner: bytes):
    with pytest.raises(ValueError):  # noqa: PT011 some of the texts are msgpack's
        msgpack.loads(b"\xc7" + bytes([len(inner)]) + b"\x51" + inner)


@pytest.mark.parametrize(
    ("shape", "dtype", "why"),
    [
        ((7, 1024), "torch.float16", ""),
        ((0, 1024), "torch.float16", ""),
        ((1024,), "torch.float16", "expected 2 dimensions (any, 1024), got 1: (1024)"),
        ((7, 1023), "torch.float16", "expected shape (any, 1024), got (7, 1023)"),
        ((7, 1024), "torch.float32", "expected dtype torch.float16, got torch.float32"),
    ],
)
def test_a_tensor_fits_or_is_told_why_not(shape: tuple, dtype: str, why: str):
    assert HALF.mismatch(shape, dtype) == why


def test_without_a_dtype_any_will_do():
    assert BARE.mismatch((1, 16), "torch.int64") == ""
