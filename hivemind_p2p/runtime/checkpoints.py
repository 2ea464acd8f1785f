"""States of experts on disk: whatever happens at whatever moment, the last complete one is found again.

A directory holds one directory for each uid, and there ``checkpoint_00000042.safetensors``, numbered as they were
written. A file gets that name only when all of it lies on the disk: it is written under a hidden name, flushed
(``fsync``), renamed, and then its directory is flushed. So a process or a machine that dies leaves a complete file, or
a hidden one that nobody reads and the next start removes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from hivemind_p2p.errors import CheckpointError
from hivemind_p2p.runtime.expert_backend import ExpertBackend
from hivemind_p2p.runtime.state import ExpertState
from hivemind_p2p.wire.expert_uid import is_valid_uid

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_NAME: Final = re.compile(r"checkpoint_([0-9]{8,18})\.safetensors")
_HIDDEN: Final = ".checkpoint_*.tmp"
_LOCK: Final = ".lock"


class Checkpoints:
    """The checkpoints in one directory, which one server writes at a time.

    Args:
        directory: made when not there.
        kept: so many of each expert stay, the newest.

    Raises:
        CheckpointError: the directory cannot be made.
    """

    def __init__(self, directory: str | Path, *, kept: int = 3) -> None:
        if kept < 1:
            raise CheckpointError(f"of each expert at least one checkpoint must be kept, not {kept}")
        self.directory, self.kept = Path(directory), kept
        self._lock: weakref.finalize[..., Checkpoints] | None = None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"checkpoints cannot lie in {directory}: {error}; name another directory") from error

    def lock(self) -> None:
        """Keep others out until :meth:`unlock`, or until this process ends.

        Raises:
            CheckpointError: another server has it.
        """
        if fcntl is None or self._lock is not None:
            return
        path = self.directory / _LOCK
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CheckpointError(f"checkpoints cannot be written to {self.directory}: {error}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise CheckpointError(
                f"another server saves its experts in {self.directory}; give each server a directory of its own"
            ) from None
        except OSError as error:  # some network file systems have no locks
            logger.warning("%s cannot be locked (%s); take care that no other server uses it", path, error)
        self._lock = weakref.finalize(self, os.close, descriptor)  # which gives the lock back, however we end

    def unlock(self) -> None:
        """Let others in."""
        if self._lock is not None:
            self._lock()
            self._lock = None

    def uids(self) -> list[str]:
        """The experts of whom there is a checkpoint."""
        with self._told():
            names = [unquote(path.name) for path in self.directory.iterdir()]
        return sorted(uid for uid in names if is_valid_uid(uid) and self.of(uid))

    def of(self, uid: str) -> list[Path]:
        """Those of an expert, the newest first."""
        folder = self._folder(uid)
        with self._told():
            names = os.listdir(folder) if folder.is_dir() else []
        return [folder / name for name in sorted(filter(_NAME.fullmatch, names), key=_number, reverse=True)]

    def load(self, expert: ExpertBackend) -> Path | None:
        """Make an expert what its newest checkpoint says, before it computes.

        A broken one is passed over for the one before it, with a warning.

        Returns:
            The file; None if there is no checkpoint.

        Raises:
            CheckpointError: all that there are are broken, or the newest one that is not is of another kind of expert.
        """
        broken: list[str] = []
        for path in self.of(expert.name):
            try:
                state = ExpertState.read(path, expert.name)
            except CheckpointError as error:
                logger.warning("checkpoint %s is broken, and the one before it is tried: %s", path, error)
                broken.append(f"{path}: {error}")
                continue
            try:
                state.restore(expert)
            except CheckpointError as error:
                raise CheckpointError(
                    f"checkpoint {path} is not of an expert like {expert.name} is to be now: {error}; start it as it "
                    "was, or move the checkpoint away"
                ) from error
            logger.info("expert %s goes on after %d updates, from %s", expert.name, state.update_count, path)
            return path
        if broken:
            raise CheckpointError(
                f"no checkpoint of expert {expert.name} can be read: {'; '.join(broken)}. Move them away to start anew"
            )
        return None

    def save(self, uid: str, state: ExpertState) -> Path:
        """Write a checkpoint, and remove those that are too many. Blocks until it is safe on the disk.

        Raises:
            CheckpointError: it cannot be written. Those that were there are still.
        """
        before = self.of(uid)
        path = self._folder(uid) / f"checkpoint_{_number(before[0].name) + 1 if before else 1:08d}.safetensors"
        hidden = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(exist_ok=True)
            state.write(hidden, uid)
            _flush(hidden)
            hidden.rename(path)
            _flush(path.parent)
            self._prune([path, *before])
        except Exception as error:  # safetensors has its own errors for a full disk
            with contextlib.suppress(OSError):
                hidden.unlink(missing_ok=True)
            raise CheckpointError(
                f"checkpoint {path} cannot be written: {error}; is there room on the disk?"
            ) from error
        return path

    def clean_up(self) -> None:
        """Remove what writers that died have left, and what they had no time to remove. While nobody writes."""
        with self._told():
            for path in self.directory.glob(f"*/{_HIDDEN}"):
                path.unlink(missing_ok=True)
            for uid in self.uids():
                self._prune(self.of(uid))

    def _prune(self, newest_first: list[Path]) -> None:
        for old in newest_first[self.kept :]:
            old.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What the file system says, as an error of ours."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"the checkpoints in {self.directory} cannot be used: {error}") from error

    def _folder(self, uid: str) -> Path:
        return self.directory / quote(uid, safe="")  # the name of a grid may be anything without a dot

    def __repr__(self) -> str:
        return f"<Checkpoints of {len(self.uids())} experts in {self.directory}, {self.kept} of each>"


def _number(name: str) -> int:
    match = _NAME.fullmatch(name)
    assert match is not None
    return int(match[1])


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot, and need not
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
