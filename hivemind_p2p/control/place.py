"""Where the sockets of a user's nodes lie."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from hivemind_p2p.errors import ControlError
from hivemind_p2p.wire.peer_id import PeerID

_LONGEST: Final = 100
"""Bytes of a socket's path that every system takes."""
_TAIL: Final = 16
"""Characters of the peer id in a socket's name: all of them would not fit everywhere."""


def directory_of(given: Path | None) -> Path:
    """The folder for sockets: as given, or the one of this user."""
    if given is not None:
        return given.expanduser()
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime, "hivemind-p2p")
    return Path(tempfile.gettempdir(), f"hivemind-p2p-{os.geteuid()}")


def socket_path(directory: Path, peer_id: PeerID) -> Path:
    """The socket of one node.

    Raises:
        ControlError: the path is longer than systems take.
    """
    path = directory / f"{peer_id.base58[-_TAIL:]}.sock"
    if len(os.fsencode(path)) > _LONGEST:
        raise ControlError(f"{path} is too long for the path of a socket; set control.directory to a shorter one")
    return path


def prepare(directory: Path) -> None:
    """Make the folder, or see that it is ours alone: in /tmp, anybody could have made it.

    Raises:
        ControlError: it is not.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        check(directory)
    except OSError as error:
        raise ControlError(
            f"cannot use {directory} for the sockets of nodes: {error.strerror}; set control.directory to another one"
        ) from None


def check(directory: Path) -> None:
    """See that a folder is ours alone; to root, that of any user will do.

    Raises:
        ControlError: it is not.
        OSError: it cannot be looked at.
    """
    status = directory.lstat()
    is_private = stat.S_ISDIR(status.st_mode) and not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    if not is_private or os.geteuid() not in (0, status.st_uid):
        raise ControlError(
            f"{directory} is not a folder of this user alone (mode 0700), so others could put sockets there; "
            "remove it, or set control.directory to another one"
        )
