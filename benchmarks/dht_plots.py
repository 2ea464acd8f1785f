"""Plots of simulated swarms: success, hops and latency against size and churn. Needs matplotlib."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def draw(
    by_size: Mapping[int, dict[str, Any]], by_churn: Mapping[float, dict[str, Any]], middle: int, folder: Path
) -> list[Path]:
    """Write the plots into ``folder``; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = figure("nodes", by_size, log=True)
    sizes.suptitle("Simulated swarms: 50 % replaced per hour, 10 % bad peers, 10 % loss, 20-200 ms")
    churn = figure("replaced per hour", by_churn, log=False)
    churn.suptitle(f"Simulated swarms of {middle} nodes: 10 % bad peers, 10 % loss, 20-200 ms")
    paths = [folder / "dht-size.svg", folder / "dht-churn.svg"]
    for drawn, path in zip((sizes, churn), paths, strict=True):
        drawn.tight_layout()
        drawn.savefig(path, metadata={"Date": None})
    return paths


def figure(axis: str, results: Mapping[Any, dict[str, Any]], *, log: bool) -> Any:
    """Three plots side by side over what varies."""
    drawn, (success, hops, latency) = pyplot.subplots(1, 3, figsize=(12, 3.6))
    over = list(results)
    success.plot(over, [100 * each["found"] / each["gets"] for each in results.values()], "o-")
    success.set_ylim(99, 100.1)
    success.set_ylabel("gets that found, %")
    hops.plot(over, [statistics.mean(each["hops"]) for each in results.values()], "o-", label="mean")
    hops.plot(over, [max(each["hops"]) for each in results.values()], "o-", label="most")
    if log:
        hops.plot(over, [math.log2(each) for each in over], "--", color="gray", label="log2 n")
    hops.set_ylabel("hops")
    hops.legend()
    for name, key in (("get", "get_seconds"), ("store", "store_seconds"), ("join", "join_seconds")):
        latency.plot(over, [statistics.median(each[key]) for each in results.values()], "o-", label=name)
    latency.set_ylabel("median, s")
    latency.legend()
    for each in (success, hops, latency):
        each.set_xlabel(axis)
        if log:
            each.set_xscale("log")
        each.grid(alpha=0.3)
    return drawn
