"""Draw the ten distance functions of Eq. 9, as computed here: python docs/draw_distances.py [FILE]."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch

from ala_metric import ops

mpl.use("agg")
mpl.rcParams |= {"svg.hashsalt": "ala_metric", "svg.fonttype": "path", "font.size": 9}
NAMES = {
    True: ("$d^2$ (start)", "$d$", r"$\sqrt{d+0.01}-0.1$", "$0.5\\,d^3$", r"softplus$(6(d-0.8))/6$"),
    False: ("$0.5/d$ (start)", "$2-d$", r"$-\log(d/2)$", r"$2\,e^{-2d}$", r"softplus$(6(1.2-d))/6$"),
}
TITLES = {True: "positive pairs: pulled together", False: "negative pairs: pushed apart"}


def draw(file: Path) -> None:
    d = torch.linspace(0, 2, 201)
    figure, both = plt.subplots(2, 1, figsize=(5.5, 6.6), layout="constrained")
    for axes, positive in zip(both, (True, False)):
        for k, phi in enumerate(torch.eye(5)):
            values = ops.mixture_of_distance(d, phi, positive=positive)
            number = k + 1 if positive else k + 6
            label = f"$F^{'+' if positive else '-'}_{k + 1}$  {NAMES[positive][k]}  · $\\phi_{{{number}}}$"
            axes.plot(d, values, label=label)
        axes.set(xlim=(0, 2), ylim=(0, 4), xlabel="distance $d$ of unit vectors", title=TITLES[positive])
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="upper left" if positive else "upper right")
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("distances.svg"))
