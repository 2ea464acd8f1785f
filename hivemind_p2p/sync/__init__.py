"""Synchronous faces: what lives in Trio, used from threads that know no Trio."""

from __future__ import annotations

from hivemind_p2p.sync.call_group import CallGroup
from hivemind_p2p.sync.dht import DHT
from hivemind_p2p.sync.portal_thread import Held, Portal, PortalFuture, portal

__all__ = ["DHT", "CallGroup", "Held", "Portal", "PortalFuture", "portal"]
