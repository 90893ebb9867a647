"""The two pictures of the toy: the landscape, and what the network predicts at its optima."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LightSource, ListedColormap, Normalize
from matplotlib.figure import Figure
from torch import Tensor
from toy.network import logits
from toy.surface import EAST, NORTH, SOUTH, WEST, Landscape, Toy

GREEN, RED = "#00a04a", "#e03020"  # the article's bars: the sharp optimum, and the flat one
CEILING = 1.5
"""Loss above which the surface is cut off."""
BEND = 0.35
"""Loss above the lowest from which on heights are compressed, so that valleys and walls fit one picture."""


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
