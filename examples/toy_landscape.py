"""The toy of the article: a network of two weights, whose sharp global optimum has the worse PAC-Bayes bound.

    python examples/toy_landscape.py --output toy  # two pictures in that folder, half a minute
    python examples/toy_landscape.py --output toy --smoke  # coarse ones in seconds

100 points of a mixture of three Gaussians in the plane are labeled by whether their density is above its median.  An
MLP of five layers of width 2 learns them; its layers share two weights, w1 and w2.  So the whole loss surface can be
drawn, colored by the complexity K(η) at every point, and below it the bound: the loss plus what the noise costs.  The
global optimum lies in a ravine.  A local one, in a wide valley, has a higher loss, and yet the lower bound.

Both are found by search: of all local minima, the one of the lowest loss, and the one of the lowest bound.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.func import vmap
from toy.network import Mixture, SharedMLP
from toy.pictures import draw_decisions, draw_landscape
from toy.surface import Toy
from transformers import HfArgumentParser

from hf_pacgen import ScoreConfig, SharpnessConfig, expected_sharpness, hessian_spectrum, pacgen


@dataclass
class Arguments:
    """What can be set; see ``--help``."""

    output: str = field(default="toy", metadata={"help": "Folder for the pictures; it is made."})
    seed: int = field(default=38, metadata={"help": "Seed of the mixture and its points: each is another landscape."})
    eta: float = field(default=39.0, metadata={"help": "η of the bound; the article's is 39."})
    resolution: int = field(default=161, metadata={"help": "Points of the grid along w1; along w2 two thirds of them."})
    smoke: bool = field(default=False, metadata={"help": "A coarse grid: it shows the way, not the picture."})


def measures(toy: Toy, w: Tensor) -> dict[str, float]:
    """What the package says of one optimum."""
    data = [{"points": toy.mixture.points, "labels": toy.mixture.labels}]
    model, quiet = SharedMLP(w), {"progress": False}
    config = ScoreConfig(estimator="exact", eta=toy.eta, lipschitz_directions=8, lipschitz_iterations=2)
    result = pacgen(model, data, config=config, **quiet)  # type: ignore[arg-type]
    rise = expected_sharpness(model, data, noise_scale=0.2, config=SharpnessConfig(draws=200), **quiet)  # type: ignore[arg-type]
    return {
        "w1": w[0].item(),
        "w2": w[1].item(),
        "loss": result.loss,
        "Hessian trace": result.hessian_trace,
        "λ_max": hessian_spectrum(model, data, k=1, **quiet).eigenvalues[0],  # type: ignore[arg-type]
        "ρ": result.hessian_lipschitz,
        "expected sharpness (σ = 0.2)": rise.mean,
        "Ψ": result.score,
        f"K({toy.eta:g})": result.kl_complexity,
        "bound": toy.metric_and_bound(w[None])[1].item(),
    }


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Search, draw, print; returns the measures of both optima."""
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args=argv)  # type: ignore[arg-type]
    if args.eta <= 0 or args.resolution < 20:
        sys.exit(f"--eta must be positive and --resolution at least 20; got {args.eta} and {args.resolution}.")
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    toy = Toy(Mixture.draw(args.seed), args.eta)
    land = toy.landscape(45 if args.smoke else args.resolution)
    minima = toy.minima(land)
    losses, (_, bounds) = vmap(toy.loss)(minima), toy.metric_and_bound(minima)
    optima = {"sharp": minima[losses.argmin()], "flat": minima[bounds.argmin()]}
    if losses.argmin() == bounds.argmin():
        sys.exit(
            f"With --seed {args.seed} the lowest minimum has the lowest bound too. Another seed, another landscape."
        )
    found = {name: measures(toy, w) for name, w in optima.items()}
    table = Table("", *found, title=f"The two optima, of {len(minima)} local minima", title_justify="left")
    for row in found["sharp"]:
        table.add_row(row, *(f"{found[name][row]:.4g}" for name in found))
    Console().print(table)
    pictures = {"toy_landscape": draw_landscape(land, optima, toy), "toy_decisions": draw_decisions(toy, optima)}
    for name, figure in pictures.items():
        figure.savefig(folder / f"{name}.png", dpi=40 if args.smoke else 80, metadata={"Software": None})
        print(f"Written to {folder / name}.png")
    return found


if __name__ == "__main__":
    main()
