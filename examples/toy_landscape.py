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
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LightSource, ListedColormap, Normalize
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import hessian, vmap
from transformers import HfArgumentParser

from hf_pacgen import ScoreConfig, SharpnessConfig, expected_sharpness, hessian_spectrum, pacgen, pacgen_score
from hf_pacgen.noise.scale import optimal_noise_scale
from hf_pacgen.score import neighborhood

GREEN, RED = "#00a04a", "#e03020"  # the article's bars: the sharp optimum, and the flat one
POINTS, LAYERS = 100, 5
WEST, EAST, SOUTH, NORTH = -10.0, 12.0, -5.0, 9.0
CEILING = 1.5
"""Loss above which the surface is cut off."""
BEND = 0.35
"""Loss above the lowest from which on heights are compressed, so that valleys and walls fit one picture."""


@dataclass
class Arguments:
    """What can be set; see ``--help``."""

    output: str = field(default="toy", metadata={"help": "Folder for the pictures; it is made."})
    seed: int = field(default=38, metadata={"help": "Seed of the mixture and its points: each is another landscape."})
    eta: float = field(default=39.0, metadata={"help": "η of the bound; the article's is 39."})
    resolution: int = field(default=161, metadata={"help": "Points of the grid along w1; along w2 two thirds of them."})
    smoke: bool = field(default=False, metadata={"help": "A coarse grid: it shows the way, not the picture."})


# ------------------------------------------------------------------------------------------- data and network


@dataclass
class Mixture:
    """Three round Gaussians of equal weight."""

    means: Tensor
    widths: Tensor
    points: Tensor
    labels: Tensor

    @classmethod
    def draw(cls, seed: int) -> Mixture:
        """A mixture, and points of it labeled by density."""
        generator = torch.Generator().manual_seed(seed)
        means = 1.5 * torch.randn(3, 2, generator=generator, dtype=torch.float64)
        widths = 0.3 + torch.rand(3, generator=generator, dtype=torch.float64)
        which = torch.randint(0, 3, (POINTS,), generator=generator)
        noise = torch.randn(POINTS, 2, generator=generator, dtype=torch.float64)
        points = means[which] + widths[which, None] * noise
        mixture = cls(means, widths, points, torch.zeros(0))
        density = mixture.density(points)
        mixture.labels = (density > density.median()).long()
        return mixture

    def density(self, points: Tensor) -> Tensor:
        """At some points, up to a factor."""
        squares = (points[:, None] - self.means).square().sum(-1)
        return (torch.exp(-squares / (2 * self.widths**2)) / self.widths**2).mean(1)


def logits(weights: Tensor, points: Tensor) -> Tensor:
    """Five layers with the matrix [[w1, w2], [w1, -w2]], and between them the sigmoid around its middle, σ(z) - 1/2."""
    matrix = torch.stack([weights, weights * weights.new_tensor([1.0, -1.0])])
    hidden = points
    for layer in range(LAYERS):
        hidden = hidden @ matrix.T
        if layer < LAYERS - 1:
            hidden = torch.sigmoid(hidden) - 0.5
    return hidden


class SharedMLP(nn.Module):
    """The network at given weights, as any other model."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(weights.clone())

    def forward(self, points: Tensor, labels: Tensor) -> dict[str, Tensor]:
        scores = logits(self.w, points)
        return {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}


# ------------------------------------------------------------------------------------------- the landscape


@dataclass
class Landscape:
    """Loss, metric and bound on a grid, the losses of shape (w1, w2)."""

    across: Tensor
    up: Tensor
    loss: Tensor
    metric: Tensor
    bound: Tensor


class Toy:
    """The data, and all that can be asked about weights."""

    def __init__(self, mixture: Mixture, eta: float) -> None:
        self.mixture, self.eta = mixture, eta

    def loss(self, weights: Tensor) -> Tensor:
        """L̂(w) of one pair of weights."""
        return nn.functional.cross_entropy(logits(weights, self.mixture.points), self.mixture.labels)

    def metric_and_bound(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """K(η), and the bound L̂ + Σ σ_i²(H_ii/6 + ρ√m N_i/18) + K(η)/η at the optimal noise σ, of many pairs (n, 2).

        ρ is the largest ‖H(w+u) - H(w)‖/‖u‖ over the corners and the middles of the edges of the box.
        """
        curvature = vmap(hessian(self.loss), chunk_size=1024)
        here, box = curvature(weights), neighborhood(weights, gamma=0.1, epsilon=0.1)
        rho = torch.zeros(len(weights), dtype=torch.float64)
        for corner in ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1)):
            u = box * torch.tensor(corner)
            change = torch.linalg.matrix_norm(curvature(weights + u) - here, 2)
            rho = torch.maximum(rho, change / u.norm(dim=1))
        diagonal = torch.diagonal(here, dim1=1, dim2=2)
        losses = vmap(self.loss)(weights)
        metrics, bounds = [], []
        for w, h, r, loss in zip(weights, diagonal, rho.tolist(), losses.tolist(), strict=True):
            sigma = optimal_noise_scale(w, h, r, eta=self.eta, num_parameters=2)
            rise = (sigma**2 * (h / 6 + r * 2**0.5 * neighborhood(w, gamma=0.1, epsilon=0.1) / 18)).sum().item()
            metrics.append(pacgen_score(w, h, r, eta=self.eta).kl_complexity)
            bounds.append(loss + max(rise, 0.0) + metrics[-1] / self.eta)
        return torch.tensor(metrics), torch.tensor(bounds)

    def landscape(self, resolution: int) -> Landscape:
        """Everything on a grid."""
        across = torch.linspace(WEST, EAST, resolution, dtype=torch.float64)
        up = torch.linspace(SOUTH, NORTH, round(resolution * (NORTH - SOUTH) / (EAST - WEST)), dtype=torch.float64)
        pairs = torch.cartesian_prod(across, up)
        loss = vmap(self.loss, chunk_size=4096)(pairs).view(len(across), len(up))
        metric, bound = (values.view_as(loss) for values in self.metric_and_bound(pairs))
        return Landscape(across, up, loss, metric, bound)

    def minima(self, land: Landscape) -> Tensor:
        """All local minima of the loss inside the picture: lower than their eight neighbors, then refined by Newton."""
        padded = nn.functional.pad(land.loss[None, None], (1, 1, 1, 1), value=float("inf"))[0, 0]
        rows, columns = land.loss.shape
        shifted = [padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3) if (i, j) != (1, 1)]
        lowest = land.loss < torch.stack(shifted).amin(0)
        lowest[[0, -1]] = lowest[:, [0, -1]] = False
        found: list[Tensor] = []
        for i, j in lowest.nonzero().tolist():
            w = self.descend(torch.stack([land.across[i], land.up[j]]))
            if WEST < w[0] < EAST and SOUTH < w[1] < NORTH and all((w - other).norm() > 0.05 for other in found):
                found.append(w)
        return torch.stack(found)

    def descend(self, weights: Tensor, steps: int = 200) -> Tensor:
        """Newton's method with the curvature made positive, and steps halved until the loss falls."""
        w, loss = weights, self.loss(weights)
        for _ in range(steps):
            values, vectors = torch.linalg.eigh(torch.func.hessian(self.loss)(w))
            gradient = torch.func.grad(self.loss)(w)
            step = vectors @ ((vectors.T @ gradient) / values.abs().clamp_min(1e-6))
            step = step * min(1.0, 0.5 / step.norm().item()) if step.norm() else step
            while step.norm() > 1e-10 and not self.loss(w - step) < loss:
                step = step / 2
            if step.norm() <= 1e-10:
                break
            w = w - step
            loss = self.loss(w)
        return w


# ------------------------------------------------------------------------------------------- pictures


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def draw_landscape(land: Landscape, optima: dict[str, Tensor], toy: Toy) -> Figure:
    """The loss surface in the colors of the metric, the bound on a plane below it, and the two optima as bars."""
    figure = new_figure(10, 7.6)
    ax: Any = figure.add_axes((-0.04, -0.015, 0.92, 1.03), projection="3d", computed_zorder=False)
    across, up = (axis.numpy() for axis in torch.meshgrid(land.across, land.up, indexing="ij"))
    shown, lowest = land.loss <= CEILING, land.loss.min().item()

    def height(loss: Any) -> Tensor:
        return BEND * (1 - torch.exp((lowest - torch.as_tensor(loss)) / BEND))

    floor, roof = -0.32, height(CEILING).item()
    metric = Normalize(*torch.quantile(land.metric[shown], torch.tensor([0.02, 0.95])).tolist())
    least = land.bound.min().item()
    bound = Normalize(least, least + 0.5)
    levels = torch.linspace(least, least + 0.5, 25).tolist()
    plane = land.bound.clamp(max=least + 0.4999).numpy()
    ax.contourf(across, up, plane, levels, zdir="z", offset=floor, cmap="viridis", norm=bound, zorder=0)
    light = LightSource(azdeg=80, altdeg=45).hillshade(height(land.loss).numpy(), vert_exag=2.5)
    shaded = colormaps["coolwarm"](metric(land.metric.numpy()))
    shaded[..., :3] *= 0.62 + 0.38 * light[..., None]
    surface = ax.plot_surface(
        across,
        up,
        torch.where(shown, height(land.loss), torch.nan).numpy(),
        facecolors=shaded,
        rcount=len(land.across),
        ccount=len(land.up),
        linewidth=0,
        antialiased=False,
        shade=False,
        zorder=2,
    )
    surface.set_edgecolor("face")
    for (name, w), color in zip(optima.items(), (GREEN, RED), strict=True):
        foot, place = height(toy.loss(w).item()).item(), ([w[0]] * 2, [w[1]] * 2)
        ax.plot(*place, [floor, foot], color=color, lw=2, ls=":", zorder=1)
        ax.plot(*place, [foot, roof + 0.12], color=color, lw=4.5, zorder=4, solid_capstyle="round")
        ax.plot([w[0]], [w[1]], [floor], "o", color=color, markeredgecolor="white", markersize=9, zorder=1)
        ax.text(w[0], w[1], roof + 0.15, name, color=color, fontsize=13, fontweight="bold", ha="center", zorder=5)
    ax.set(xlabel="$w_1$", ylabel="$w_2$", xlim=(WEST, EAST), ylim=(SOUTH, NORTH), zlim=(floor, roof))
    ticks = [0.5, 0.6, 0.8, 1.2]
    ax.set_zticks(height(torch.tensor(ticks)).tolist(), [f"{tick:g}" for tick in ticks])
    ax.set_zlabel("loss", labelpad=2)
    ax.set_box_aspect((1.25, 1.0, 0.8), zoom=1.05)
    ax.view_init(elev=33, azim=112)
    for k, (cmap, norm, label) in enumerate(
        (
            ("coolwarm", metric, "surface: complexity K(η), in nats"),
            ("viridis", bound, "plane below: bound on the noisy loss"),
        )
    ):
        bar = figure.add_axes((0.89, 0.55 - 0.42 * k, 0.016, 0.34))
        figure.colorbar(ScalarMappable(norm, cmap), cax=bar, label=label, extend="both" if k == 0 else "max")
    figure.text(
        0.03, 0.95, f"Two weights, five layers: the loss, the metric and the bound at η = {toy.eta:g}", fontsize=13
    )
    return figure


def draw_decisions(toy: Toy, optima: dict[str, Tensor]) -> Figure:
    """What the network predicts in the plane at the two optima."""
    figure = new_figure(10, 4.9)
    points, labels = toy.mixture.points, toy.mixture.labels
    low, high = points.amin(0) - 0.6, points.amax(0) + 0.6
    axes = [torch.linspace(low[i].item(), high[i].item(), 400, dtype=torch.float64) for i in range(2)]
    grid = torch.cartesian_prod(*axes)
    for k, ((name, w), color) in enumerate(zip(optima.items(), (GREEN, RED), strict=True)):
        ax = figure.add_axes((0.05 + 0.49 * k, 0.09, 0.44, 0.76))
        predicted = logits(w, grid).argmax(1).view(400, 400).T
        ax.contourf(
            *(a.tolist() for a in axes), predicted.tolist(), levels=[-0.5, 0.5, 1.5], colors=["#cfe0f3", "#fbe3c0"]
        )
        ax.contour(*(a.tolist() for a in axes), predicted.tolist(), levels=[0.5], colors=[color], linewidths=2)
        ax.scatter(
            *points.T.tolist(),
            c=labels.tolist(),
            cmap=ListedColormap(["#2b5f9e", "#e08a00"]),
            s=26,
            edgecolor="white",
            lw=0.5,
        )
        right = (logits(w, points).argmax(1) == labels).double().mean().item()
        ax.set_title(f"{name} optimum: loss {toy.loss(w).item():.3f}, {right:.0%} right", color=color, fontsize=12)
        ax.set(xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set(color=color, linewidth=2)
    figure.text(
        0.05, 0.94, "Predicted labels; points by their true label (orange: density above its median)", fontsize=12
    )
    return figure


# ------------------------------------------------------------------------------------------- the whole


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
