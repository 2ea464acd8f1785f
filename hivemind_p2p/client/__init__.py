"""Experts on other machines, used like local torch modules."""

from __future__ import annotations

from hivemind_p2p.client.beam_search import ExpertInfo
from hivemind_p2p.client.compression import Compression
from hivemind_p2p.client.contacts import ClientStats, client_stats
from hivemind_p2p.client.expert import RemoteExpert, get_experts
from hivemind_p2p.client.moe import RemoteMixtureOfExperts
from hivemind_p2p.client.replicas import Replica
from hivemind_p2p.client.report import AttemptReport, BatchReport, CallReport, MixtureReport, TensorReport
from hivemind_p2p.client.switch_moe import RemoteSwitchMixtureOfExperts
from hivemind_p2p.client.together import call_together

__all__ = [
    "AttemptReport",
    "BatchReport",
    "CallReport",
    "ClientStats",
    "Compression",
    "ExpertInfo",
    "MixtureReport",
    "RemoteExpert",
    "RemoteMixtureOfExperts",
    "RemoteSwitchMixtureOfExperts",
    "Replica",
    "TensorReport",
    "call_together",
    "client_stats",
    "get_experts",
]
