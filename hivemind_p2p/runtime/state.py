"""The state of an expert as tensors and plain data: module, optimizer, scheduler and counts. Taken, checked, put back.

As bytes it is one safetensors file: the tensors; in its metadata, as JSON, the nested structure in which they were
found; and a checksum over both, for safetensors has none. Nothing of it is ever executed or unpickled.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import safetensors
import torch
from safetensors.torch import load, save, save_file

from hivemind_p2p.errors import CheckpointError
from hivemind_p2p.runtime.finite import all_finite, norms_finite
from hivemind_p2p.runtime.memory import make_ordinary
from hivemind_p2p.runtime.training import Accumulated

if TYPE_CHECKING:
    from hivemind_p2p.runtime.expert_backend import ExpertBackend

logger = logging.getLogger(__name__)

FORMAT: Final = "hivemind_p2p.expert.1"
_COUNTS: Final = ("update_count", "examples_processed", "exploded_steps")
_PLAIN: Final = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class ExpertState:
    """What an expert is at one moment.

    Attributes:
        tensors: by path, in main memory, shared with nobody.
        tree: plain data: ``module``, ``optimizer``, ``scheduler`` and the counts, with the paths of the tensors where
            they belong.
    """

    tensors: dict[str, torch.Tensor]
    tree: dict[str, Any]

    @property
    def update_count(self) -> int:
        """Steps of the optimizer that led here."""
        return int(self.tree["counts"]["update_count"])

    @property
    def nbytes(self) -> int:
        """Of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @classmethod
    def of(cls, expert: ExpertBackend, *, accumulated: bool = True) -> ExpertState:
        """Take a copy. On the device thread, or while nothing is computed.

        Args:
            accumulated: with the gradients that wait for more before a step is made.

        Raises:
            CheckpointError: something in it is neither a tensor nor plain data.
        """
        tensors: dict[str, torch.Tensor] = {}
        training = expert.training
        parts = {"module": expert.module.state_dict()}
        if expert.optimizer is not None:
            parts["optimizer"] = expert.optimizer.state_dict()
        if expert.scheduler is not None:
            parts["scheduler"] = expert.scheduler.state_dict()
        tree = {name: _plain(part, name, tensors) for name, part in parts.items()}
        tree["counts"] = {name: getattr(training, name) for name in _COUNTS}
        waiting = training.accumulated
        if accumulated and waiting.batches and not any(each.is_sparse for each in waiting.gradients.values()):
            tree["accumulated"] = _plain(vars(waiting), "accumulated", tensors)
        return cls(tensors, tree)

    def restore(self, expert: ExpertBackend) -> None:
        """Make an expert what this is: all of it, or with an error nothing. On the device thread, if there is one.

        The learning rate is the saved one, too. An expert without an optimizer takes the weights and lets the rest be.

        Raises:
            CheckpointError: it is the state of another kind of expert, of optimizer or of scheduler, or its parameters
                have NaN or infinity.
        """
        module, optimizer, scheduler = expert.module, expert.optimizer, expert.scheduler
        weights = self._part("module")
        _check_same(module.state_dict(), weights, "module")
        bad = [name for name, _ in module.named_parameters() if name in weights and not all_finite([weights[name]])]
        if bad and expert.detect_anomalies:
            raise CheckpointError(f"{bad[0]} has NaN or infinity in it")
        rates = _learning_rates(optimizer)
        remembered = self._part("optimizer") if optimizer is not None else None
        schedule = self._part("scheduler") if scheduler is not None else {}
        accumulated = self._accumulated(expert)
        if scheduler is not None:
            _check_same(scheduler.state_dict(), schedule, "scheduler")
        before = {name: tensor.clone() for name, tensor in module.state_dict().items() if torch.is_tensor(tensor)}
        make_ordinary(module)
        try:
            module.load_state_dict(weights)
            if optimizer is not None:
                _restore_optimizer(optimizer, remembered)
            if scheduler is not None:
                scheduler.load_state_dict(schedule)
        except Exception as error:  # whatever a custom module or optimizer makes of it
            module.load_state_dict(before, strict=False)
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"it cannot be loaded: {type(error).__name__}: {error}") from error
        if _learning_rates(optimizer) != rates and scheduler is None:
            logger.warning(
                "expert %s goes on with the learning rate %s that was saved, not with %s",
                expert.name, _learning_rates(optimizer), rates,
            )  # fmt: skip
        for name in _COUNTS:
            setattr(expert.training, name, int(self.tree["counts"][name]))
        expert.training.accumulated = accumulated

    def _part(self, name: str) -> Any:
        if name not in self.tree:
            raise CheckpointError(f"it has no {name}, but the expert has one")
        try:
            return _filled(self.tree[name], self.tensors)
        except RecursionError:
            raise CheckpointError("its structure is too deep") from None

    def _accumulated(self, expert: ExpertBackend) -> Accumulated:
        """The gradients that wait; none for an expert that does not learn."""
        if "accumulated" not in self.tree or expert.optimizer is None:
            return Accumulated()
        match self._part("accumulated"):
            case {"batches": int() as batches, "rows": int() as rows, "gradients": dict() as gradients}:
                like = {place: (each.shape, each.dtype) for place, each in enumerate(expert.training.weights)}
                fit = all(torch.is_tensor(it) and (it.shape, it.dtype) == like.get(at) for at, it in gradients.items())
                if batches >= 0 and rows >= 0 and fit and norms_finite(gradients.values()):
                    return Accumulated(batches, rows, gradients)
        raise CheckpointError("its accumulated gradients are not those of this expert's weights")

    def to_bytes(self, uid: str) -> bytes:
        """What travels."""
        data: bytes = save(self.tensors, self._metadata(uid))
        return data

    def write(self, path: Path, uid: str) -> None:
        """Write the file. Not atomic: see :mod:`.checkpoints`."""
        save_file(self.tensors, path, self._metadata(uid))

    @classmethod
    def from_bytes(cls, data: bytes, uid: str) -> ExpertState:
        """The inverse of :meth:`to_bytes`.

        Raises:
            CheckpointError: these are not the bytes of a state of this expert, or not all, or not as they were.
        """
        try:
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])
            return cls._checked(load(data), header.get("__metadata__") or {}, uid)
        except (safetensors.SafetensorError, ValueError, AttributeError, KeyError) as error:
            raise CheckpointError(f"it is not a safetensors file: {error}") from error

    @classmethod
    def read(cls, path: Path, uid: str) -> ExpertState:
        """The inverse of :meth:`write`.

        Raises:
            CheckpointError: like :meth:`from_bytes`, or the file cannot be read.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dictionary
                metadata = file.metadata() or {}
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(f"it is not a whole safetensors file: {error}") from error
        return cls._checked(tensors, metadata, uid)

    @classmethod
    def _checked(cls, tensors: dict[str, torch.Tensor], metadata: Mapping[str, str], uid: str) -> ExpertState:
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"it is a safetensors file, but not the state of an expert ({FORMAT})")
        if metadata.get("uid") != uid:
            raise CheckpointError(f"it is the state of {metadata.get('uid', '')[:80]!r}, not of {uid!r}")
        text = metadata.get("tree", "")
        if metadata.get("crc32") != _checksum(tensors, text):
            raise CheckpointError("its checksum does not fit: it was damaged after it was written")
        try:
            state = cls(tensors, json.loads(text))
            if not all(isinstance(count := state.tree["counts"][name], int) and 0 <= count < 2**63 for name in _COUNTS):
                raise TypeError("counts are whole numbers of 63 bits")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"its structure cannot be read: {error}") from error
        return state

    def _metadata(self, uid: str) -> dict[str, str]:
        text = json.dumps(self.tree)
        return {"format": FORMAT, "uid": uid, "tree": text, "crc32": _checksum(self.tensors, text)}


def _restore_optimizer(optimizer: torch.optim.Optimizer, state: Any) -> None:
    own = optimizer.state_dict()
    _check_keys(own, state, "optimizer")
    for mine, theirs in zip(own["param_groups"], state["param_groups"], strict=False):
        _check_keys(mine, theirs, "optimizer's groups of parameters")
    before = own | {"state": dict(own["state"])}
    try:
        optimizer.load_state_dict(state)
        for weight, remembered in optimizer.state.items():
            for key, value in remembered.items():
                if torch.is_tensor(value) and value.dim() == weight.dim() and value.shape != weight.shape:
                    raise CheckpointError(f"{key} of the optimizer does not have the shape of its weight")
    except Exception:
        optimizer.load_state_dict(before)
        raise


def _learning_rates(optimizer: torch.optim.Optimizer | None) -> list[Any]:
    return [] if optimizer is None else [group.get("lr") for group in optimizer.param_groups]


def _plain(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The same as plain data, with its tensors put aside."""
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided:
            raise CheckpointError(f"{path} is a {value.layout} tensor, which cannot be saved")
        copy = torch.empty(value.shape, dtype=value.dtype)
        tensors[path] = copy.copy_(value.detach())
        return {"tensor": path}
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_plain(each, f"{path}.{i}", tensors) for i, each in enumerate(value)]}
    if isinstance(value, Mapping) and all(isinstance(key, str | int) for key in value):
        return {"dict": [[key, _plain(each, f"{path}.{key}", tensors)] for key, each in value.items()]}
    raise CheckpointError(
        f"{path} is a {type(value).__name__}: only tensors, numbers, texts and collections can be saved"
    )


def _filled(plain: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The inverse of :func:`_plain`."""
    match plain:
        case {"tensor": str() as path} if path in tensors:
            return tensors[path]
        case {"list": list() as items}:
            return [_filled(each, tensors) for each in items]
        case {"tuple": list() as items}:
            return tuple(_filled(each, tensors) for each in items)
        case {"dict": list() as items} if all(map(_is_entry, items)):
            return {key: _filled(each, tensors) for key, each in items}
        case bool() | int() | float() | str() | None:
            return plain
    raise CheckpointError(f"its structure cannot be read at {str(plain)[:80]}")


def _is_entry(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 2 and isinstance(item[0], str | int)


def _check_same(own: Mapping[str, Any], theirs: Any, what: str) -> None:
    _check_keys(own, theirs, what)
    for name, value in own.items():
        if torch.is_tensor(value) and (not torch.is_tensor(theirs[name]) or theirs[name].shape != value.shape):
            got = [*theirs[name].shape] if torch.is_tensor(theirs[name]) else type(theirs[name]).__name__
            raise CheckpointError(f"{name} of the {what} has shape {[*value.shape]}, and {got} in it")


def _check_keys(own: Mapping[str, Any], theirs: Any, what: str) -> None:
    if not isinstance(theirs, Mapping) or own.keys() != theirs.keys():
        others = set(theirs) if isinstance(theirs, Mapping) else set()
        differ = sorted(map(str, own.keys() ^ others))
        raise CheckpointError(
            f"the {what} that it is of is another one than this expert's: they differ in {differ[:5]}"
        )


def _checksum(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    crc = zlib.crc32(text.encode())
    for name, data in _bytes_of(tensors):
        crc = zlib.crc32(data, zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


def _bytes_of(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, memoryview]]:
    for name in sorted(tensors):
        flat = tensors[name].reshape(-1)
        yield name, flat.view(torch.uint8).numpy().data if len(flat) else memoryview(b"")
