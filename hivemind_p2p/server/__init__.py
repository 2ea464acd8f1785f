"""Hosting experts: ``Server`` wraps a Runtime, answers the remote calls and keeps the experts declared in the DHT."""

from __future__ import annotations

from hivemind_p2p.server.declare import declare_experts
from hivemind_p2p.server.expert_classes import register_expert_class
from hivemind_p2p.server.server import PeerInfo, Server, background_server

__all__ = ["PeerInfo", "Server", "background_server", "declare_experts", "register_expert_class"]
