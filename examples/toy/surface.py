"""Loss, metric and bound over the two weights, and the local minima."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import hessian, vmap
from toy.network import Mixture, logits

from hf_pacgen import pacgen_score
from hf_pacgen.maths.noise_scale import optimal_noise_scale
from hf_pacgen.maths.score import neighborhood

WEST, EAST, SOUTH, NORTH = -10.0, 12.0, -5.0, 9.0


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
