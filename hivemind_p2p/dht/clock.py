"""The time that a swarm goes by."""

from __future__ import annotations

import time


def get_dht_time() -> float:
    """Unix time in seconds. Peers' clocks agree within a few seconds; expiration times are in it."""
    return time.time()
