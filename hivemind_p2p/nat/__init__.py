"""Reaching and being reached wherever a peer is: relays, hole punching, and what others see of us."""

from hivemind_p2p.nat.service import NAT

__all__ = ["NAT"]
