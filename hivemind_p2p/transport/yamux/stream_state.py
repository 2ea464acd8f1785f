"""What a Yamux session knows of one stream."""

from __future__ import annotations

from hivemind_p2p.transport.yamux.frames import ACK, INITIAL_WINDOW, SYN
from hivemind_p2p.transport.yamux.windows import ReceiveWindow


class StreamState:
    """One stream of a :class:`~.session.Session`. Read its fields; the session alone writes them."""

    __slots__ = (
        "closed",
        "dropped",
        "ended",
        "id",
        "open",
        "opening",
        "outbound",
        "receive_window",
        "remote_ended",
        "send_window",
    )

    def __init__(self, stream_id: int, *, outbound: bool, receive_window: ReceiveWindow) -> None:
        self.id = stream_id
        self.outbound = outbound
        self.opening = SYN if outbound else ACK
        """What the first frame that we send must carry; 0 once it was sent."""
        self.send_window = INITIAL_WINDOW
        """Bytes that we may send now."""
        self.receive_window = receive_window
        self.open = True
        """Whether the session still knows it: neither reset nor ended on both sides."""
        self.closed = False
        """Whether we are done with it."""
        self.dropped = 0
        """Bytes that came and were not read, since we are done with it."""
        self.ended = False
        """Whether we have ended our half."""
        self.remote_ended = False
        """Whether the peer has ended its half."""

    def __repr__(self) -> str:
        state = "open" if self.open else "closed"
        return f"<StreamState {self.id}, {state}, may send {self.send_window}, holds {self.receive_window.held}>"
