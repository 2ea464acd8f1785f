"""Record validators: who may write what into the DHT, and in which form. hivemind's idea, and its names.

A validator signs what we store (``sign_value``), judges what peers ask us to store and what they answer
(``validate``), and takes its signature off before a user sees the value (``strip_value``). What the validators of a
node refuse is neither stored nor found by it; a node without them takes everything.

Several are worn like coats: signing puts them on in order of rising ``priority``, checking takes them off from the
outermost. Validators see records as they travel: the key as its id (20 bytes), the subkey as its tag (see ``keys``).
"""

from __future__ import annotations

import abc
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from hivemind_p2p.wire.peer_id import PeerID

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DHTRecord:
    """A regular value, or one subkey of a dictionary, as it travels.

    Attributes:
        key: id of the key, 20 bytes.
        subkey: tag: msgpack of the subkey; msgpack of None for a regular value.
        value: msgpack of the value, and what validators added to it.
        expiration_time: Unix time in seconds.
    """

    key: bytes
    subkey: bytes
    value: bytes
    expiration_time: float


class Signer(Protocol):
    """Who can sign for a peer: the ``Identity`` of a node."""

    def sign(self, data: bytes) -> bytes: ...


class RecordValidatorBase(abc.ABC):
    """One rule about records; derive your own from it.

    Methods are called in the node's own thread, for every record: they must be quick, and must not wait.
    """

    @abc.abstractmethod
    def validate(self, record: DHTRecord) -> bool:
        """Whether the record may be stored, and believed. Anybody may have sent it; raising refuses it, too."""

    def sign_value(self, record: DHTRecord) -> bytes:
        """The value of a record that we are about to store, with whatever ``validate`` wants to see in it."""
        return record.value

    def strip_value(self, record: DHTRecord) -> bytes:
        """The value without what ``sign_value`` added. Only called for records that ``validate`` accepted."""
        return record.value

    @property
    def priority(self) -> int:
        """The higher, the farther outside: signed later, validated and stripped earlier. Default: 0."""
        return 0

    def bind(self, identity: Signer, peer_id: PeerID) -> None:  # noqa: B027 not every validator signs
        """Called by the node that takes this validator, with what it can sign with. By default nothing happens."""

    def merge_with(self, other: RecordValidatorBase) -> bool:
        """Take over the rules of another validator so that ``self`` stands for both; False: they stay two.

        For validators that are not to be applied one after the other, such as two schemas for different keys.
        """
        return False


class CompositeValidator(RecordValidatorBase):
    """Validators in order: a record is valid if all of them say so, each of what those outside of it left."""

    def __init__(self, validators: Iterable[RecordValidatorBase] = ()) -> None:
        self._validators: list[RecordValidatorBase] = []
        self.extend(validators)

    def extend(self, validators: Iterable[RecordValidatorBase]) -> None:
        """Add validators; one that an earlier one merges with is not kept."""
        for new in validators:
            if not any(old.merge_with(new) for old in self._validators):
                self._validators.append(new)
        self._validators.sort(key=lambda validator: validator.priority)

    def validate(self, record: DHTRecord) -> bool:
        """Whether all validators accept the record."""
        return self.refused_by(record) is None

    def refused_by(self, record: DHTRecord) -> str | None:
        """The name of the validator that refuses the record; None if none does."""
        for validator in reversed(self._validators):
            try:
                if not validator.validate(record):
                    return type(validator).__name__
                record = replace(record, value=validator.strip_value(record))
            except Exception:  # the boundary of one record: validators are users' code, records anybody's
                logger.exception("%r failed at a record, which is refused: %.300r", validator, record)
                return type(validator).__name__
        return None

    def sign_value(self, record: DHTRecord) -> bytes:
        """The value with what all validators add to it."""
        for validator in self._validators:
            record = replace(record, value=validator.sign_value(record))
        return record.value

    def strip_value(self, record: DHTRecord) -> bytes:
        """The value without what validators added."""
        for validator in reversed(self._validators):
            record = replace(record, value=validator.strip_value(record))
        return record.value

    def __len__(self) -> int:
        return len(self._validators)

    def __repr__(self) -> str:
        return f"<CompositeValidator {self._validators}>"
