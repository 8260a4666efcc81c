"""Draws what `peers.py --json` wrote: rows a second and CPU a request, against requests in flight.

`python benchmarks/plot.py FIGURES.json OUT.svg`. Needs matplotlib.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

PANELS = (("rows_per_second", "rows a second"), ("cpu_us_per_request", "CPU µs a request"))


def main() -> None:
    """Draw chat's figures at the latency that the clients share."""
    source, target = map(Path, sys.argv[1:])
    found = json.loads(source.read_text())
    latency_ms = found["figures"][0]["latency_ms"]
    chat = [one for one in found["figures"] if one["operation"] == "chat" and one["latency_ms"] == latency_ms]
    mpl.rcParams["svg.hashsalt"] = "pipeline"
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10, 4), layout="constrained")
    for axis, (name, label) in zip(axes, PANELS, strict=True):
        for client in dict.fromkeys(one["client"] for one in chat):
            points = sorted((one["in_flight"], one[name]) for one in chat if one["client"] == client)
            style = "o-" if client == "pipeline" else "o--"
            axis.plot(*zip(*points, strict=True), style, label=client, linewidth=2.5 if client == "pipeline" else 1.2)
        axis.set(xscale="log", yscale="log", xlabel="requests in flight", ylabel=label)
        axis.grid(which="major", alpha=0.3)
    axes[0].legend()
    figure.suptitle(f"Chat, answers after {latency_ms:.0f} ms, one core for the client")
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
