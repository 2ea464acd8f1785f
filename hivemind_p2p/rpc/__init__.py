"""Remote calls over streams, hivemind 1.1's on the wire: ``RPC`` makes and serves them."""

from hivemind_p2p.rpc.context import CallContext
from hivemind_p2p.rpc.rpc import RPC
from hivemind_p2p.wire.calls import protocol_id

__all__ = ["RPC", "CallContext", "protocol_id"]
