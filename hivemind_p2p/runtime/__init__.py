"""Batches on a device: experts, the pools in which requests to them wait, and the Runtime that computes. No network."""

from hivemind_p2p.runtime.checkpoints import Checkpoints
from hivemind_p2p.runtime.devices import computing, spread
from hivemind_p2p.runtime.expert_backend import ExpertBackend
from hivemind_p2p.runtime.pool import PoolStats, TaskPool
from hivemind_p2p.runtime.runtime import Runtime
from hivemind_p2p.runtime.schema import BatchTensorDescriptor, Schema
from hivemind_p2p.runtime.state import ExpertState

__all__ = [
    "BatchTensorDescriptor",
    "Checkpoints",
    "ExpertBackend",
    "ExpertState",
    "PoolStats",
    "Runtime",
    "Schema",
    "TaskPool",
    "computing",
    "spread",
]
