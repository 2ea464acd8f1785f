"""``SchemaValidator``: records under the keys that a pydantic model names must fit its fields. Needs pydantic 2."""

from __future__ import annotations

import logging
import re
from typing import Annotated, Any, Final

try:
    import pydantic
except ImportError as error:
    raise ImportError("SchemaValidator needs pydantic: pip install 'hivemind-p2p[schema]'") from error

from hivemind_p2p.dht.keys import DHTID, REGULAR_TAG, key_id, subkey_from
from hivemind_p2p.dht.validation import DHTRecord, RecordValidatorBase
from hivemind_p2p.kademlia import SHA1
from hivemind_p2p.wire import msgpack

logger = logging.getLogger(__name__)
_RSA_MARKER: Final = re.compile(rb".*\[owner:(.+?)\].*", re.DOTALL)
_PEER_MARKER: Final = re.compile(r".*\[peer:[1-9A-HJ-NP-Za-km-z]+\].*", re.DOTALL)


def _bytes_with_owner(value: bytes) -> bytes:
    if _RSA_MARKER.match(value) is None:
        raise ValueError("it names no owner: put RSASignatureValidator.local_public_key into it")
    return value


def _text_with_peer(value: str) -> str:
    if _PEER_MARKER.match(value) is None:
        raise ValueError("it names no peer: put Ed25519SignatureValidator.marker(peer_id) into it")
    return value


BytesWithPublicKey = Annotated[bytes, pydantic.AfterValidator(_bytes_with_owner)]
"""Bytes with the owner marker of :class:`~hivemind_p2p.dht.signatures.RSASignatureValidator`: for subkeys."""
StrWithPeerID = Annotated[str, pydantic.AfterValidator(_text_with_peer)]
"""Text with the owner marker of :class:`~hivemind_p2p.dht.signatures.Ed25519SignatureValidator`: for subkeys."""


class SchemaValidator(RecordValidatorBase):
    """Restrict keys of the DHT to a pydantic model, as hivemind's does::

        class Metrics(pydantic.BaseModel):
            loss: dict[StrWithPeerID, float]      # a key with subkeys
            epoch: int                            # a regular value

    Values must be of the field's type as they are: nothing is converted, and an ``int`` is no ``float``. A record of a
    key with subkeys is checked as a dictionary of that one subkey. All fields count as optional, since a record holds
    one key. Several schemas stand beside each other: a record under a key that several name must fit one of them.

    Args:
        schema: the model; its field names are keys.
        allow_extra_keys: accept records under keys that no schema names. Of several schemas, one that allows is enough.
        prefix: put ``prefix + "_"`` before all field names.
    """

    def __init__(
        self, schema: type[pydantic.BaseModel], allow_extra_keys: bool = True, prefix: str | None = None
    ) -> None:
        names = {name: name if prefix is None else f"{prefix}_{name}" for name in schema.model_fields}
        self._fields: dict[DHTID, list[tuple[type[pydantic.BaseModel], str]]] = {
            key_id(key): [(schema, name)] for name, key in names.items()
        }
        self._allow_extra_keys = allow_extra_keys

    def validate(self, record: DHTRecord) -> bool:
        """Whether the record fits, or its key is free."""
        fields = self._fields.get(SHA1.from_bytes(record.key))
        if fields is None:
            return self._allow_extra_keys
        try:
            value = msgpack.loads(record.value)
            if record.subkey != REGULAR_TAG:
                value = {subkey_from(record.subkey): value}
            elif isinstance(value, dict):
                return False  # it would look like a key with subkeys, and pass for one
        except ValueError:
            return False
        return any(_fits(schema, name, value) for schema, name in fields)

    def merge_with(self, other: RecordValidatorBase) -> bool:
        """Take over the schemas of another one."""
        if not isinstance(other, SchemaValidator):
            return False
        for key, fields in other._fields.items():
            self._fields[key] = self._fields.get(key, []) + fields
        self._allow_extra_keys = self._allow_extra_keys or other._allow_extra_keys
        return True

    def __repr__(self) -> str:
        others = "free" if self._allow_extra_keys else "refused"
        return f"<SchemaValidator of {len(self._fields)} keys, others {others}>"


def _fits(schema: type[pydantic.BaseModel], name: str, value: object) -> bool:
    """Whether a field takes a value and leaves it as it is."""
    model = schema.model_construct()
    try:
        schema.__pydantic_validator__.validate_assignment(model, name, value, strict=True)
    except pydantic.ValidationError as error:
        logger.debug("a record does not fit %s.%s: %s", schema.__name__, name, error)
        return False
    return _same(model.model_dump(include={name}, warnings=False)[name], value)


def _same(one: Any, other: Any) -> bool:
    """Equal, and of the same types all the way down: ``1 == 1.0 == True`` for Python, not for us."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        by_key = {(type(key), key): value for key, value in other.items()}
        return len(one) == len(other) and all(
            (type(key), key) in by_key and _same(value, by_key[type(key), key]) for key, value in one.items()
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
