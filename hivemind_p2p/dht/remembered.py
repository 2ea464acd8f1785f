"""Peers of the last run, in a file: a way back into the swarm when no initial peer answers, or none was given.

The file lies next to that of the identity: who keeps its name keeps its acquaintances. It is a hint and no more; one
that is not there, or cannot be read, is an empty one.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from hivemind_p2p.dht.protocol import DHTProtocol
from hivemind_p2p.transport.addresses import split_peer

logger = logging.getLogger(__name__)
MOST: Final = 32
"""Peers that are remembered."""
_ADDRESSES: Final = 2
"""Addresses of each."""
_LARGEST: Final = 2**16


def path_beside(identity_path: str | Path) -> Path:
    """Where the peers of an identity are remembered."""
    path = Path(identity_path).expanduser()
    return path.with_name(path.name + ".peers")


def load(path: Path) -> Sequence[Multiaddr]:
    """The addresses in the file, each ending in ``/p2p/<peer id>``."""
    try:
        with path.open("rb") as file:
            stored = json.loads(file.read(_LARGEST))
        maddrs = [Multiaddr(text) for text in stored["peers"][: MOST * _ADDRESSES]]
        return [maddr for maddr in maddrs if split_peer(maddr)[1] is not None]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, LookupError, TypeError, MultiaddrError) as error:
        logger.warning("the peers of the last run in %s cannot be read, and are passed over: %s", path, error)
        return []


def save(path: Path, maddrs: Sequence[Multiaddr]) -> None:
    """Write the file, whole or not at all. Nothing to remember leaves it as it is: it may still be of use."""
    if not maddrs:
        return
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump({"peers": [str(maddr) for maddr in maddrs]}, file, indent=1)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)  # it is tried again every few minutes
            raise
    except OSError as error:
        logger.warning("the peers of this run cannot be kept in %s: %s", path, error)


def worth_remembering(protocol: DHTProtocol) -> Sequence[Multiaddr]:
    """Addresses of contacts near and far; of each bucket those that were heard of last."""
    buckets = [list(reversed(bucket.contacts.values())) for bucket in protocol.table.buckets]
    rounds = max(map(len, buckets), default=0)
    peers = [bucket[turn] for turn in range(rounds) for bucket in buckets if turn < len(bucket)]
    maddrs: list[Multiaddr] = []
    for peer in peers[:MOST]:
        own = Multiaddr(f"/p2p/{peer.base58}")
        maddrs += [maddr.encapsulate(own) for maddr in protocol.network.addresses(peer)[:_ADDRESSES]]
    return maddrs
