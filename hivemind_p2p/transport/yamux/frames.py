"""Yamux frames: a header of twelve bytes, and after a data header the payload.

::

    | version 8 | type 8 | flags 16 | stream id 32 | length 32 |     all big-endian

``length`` is the size of the payload in a data frame, the growth of the window in a window update, an opaque value in
a ping, and the reason in a go-away. Names and values are the specification's:
https://github.com/hashicorp/yamux/blob/master/spec.md
"""

from __future__ import annotations

import struct
from typing import Final

HEADER: Final = struct.Struct("!BBHII")
HEADER_SIZE: Final = HEADER.size
VERSION: Final = 0

DATA: Final = 0
WINDOW_UPDATE: Final = 1
PING: Final = 2
GO_AWAY: Final = 3

SYN: Final = 1
"""A new stream begins; in a ping: this is the question."""
ACK: Final = 2
"""The new stream is accepted; in a ping: this is the answer."""
FIN: Final = 4
"""The sender has nothing more to say on this stream."""
RST: Final = 8
"""The sender has thrown the stream away."""

NORMAL: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2

INITIAL_WINDOW: Final = 256 * 1024
"""What each side may send on a new stream before it hears of more."""
LARGEST_WINDOW: Final = 2**32 - 1
MAX_PAYLOAD: Final = 4 * 65519
"""The most that we put into one frame: just under 256 KiB, and exactly four of the largest Noise messages."""
MAX_STREAM_ID: Final = 2**32 - 1


def frame(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    """One header."""
    return HEADER.pack(VERSION, kind, flags, stream_id, length)
