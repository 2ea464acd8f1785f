"""Experts on other machines, used like local torch modules."""

from __future__ import annotations

from hivemind_p2p.client.beam_search import ExpertInfo
from hivemind_p2p.client.expert import RemoteExpert, get_experts
from hivemind_p2p.client.moe import RemoteMixtureOfExperts
from hivemind_p2p.client.report import BatchReport, CallReport, MixtureReport

__all__ = [
    "BatchReport",
    "CallReport",
    "ExpertInfo",
    "MixtureReport",
    "RemoteExpert",
    "RemoteMixtureOfExperts",
    "get_experts",
]
