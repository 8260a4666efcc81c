"""Draws what `peers.py --json` wrote: rows a second, CPU a request and peak memory, by requests in flight and by rows.

`python benchmarks/plot.py FIGURES.json OUT.svg`. Needs matplotlib.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

PANELS = (("rows_per_second", "rows a second"), ("cpu_us_per_request", "CPU µs a request"), ("peak_mb", "peak MB"))
AGAINST = (("figures", "in_flight", "requests in flight"), ("sizes", "requests", "rows, 100 in flight"))


def main() -> None:
    """Draw chat's figures at the latency that the clients share."""
    source, target = map(Path, sys.argv[1:])
    found = json.loads(source.read_text())
    latency_ms = found["figures"][0]["latency_ms"]
    rows = [against for against in AGAINST if found[against[0]]]
    names = list(dict.fromkeys(one["client"] for one in found["figures"]))
    mpl.rcParams["svg.hashsalt"] = "pipeline"
    figure, axes = plt.subplots(
        len(rows), len(PANELS), figsize=(13, 4 * len(rows)), layout="constrained", squeeze=False
    )
    for line, (kind, by, across) in zip(axes, rows, strict=True):
        chat = [one for one in found[kind] if one["operation"] == "chat" and one["latency_ms"] == latency_ms]
        drawn = {one["client"] for one in chat}
        for axis, (name, label) in zip(line, PANELS, strict=True):
            for client in filter(drawn.__contains__, names):
                points = sorted((one[by], one[name]) for one in chat if one["client"] == client)
                ours = client == "pipeline"
                axis.plot(
                    *zip(*points, strict=True),
                    "o-" if ours else "o--",
                    color=f"C{names.index(client)}",
                    label=client,
                    linewidth=2.5 if ours else 1.2,
                )
            axis.set(xscale="log", yscale="log", xlabel=across, ylabel=label)
            axis.grid(which="major", alpha=0.3)
    axes[0][0].legend()
    figure.suptitle(f"Chat, answers after {latency_ms:.0f} ms, one core for the client")
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
