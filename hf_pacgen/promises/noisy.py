"""Predictions averaged over noise on the weights, whose confidence may be promised instead of the plain one."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_pacgen.config.settings import count
from hf_pacgen.config.settings import seed as seed_rule
from hf_pacgen.curvature.run_identity import described
from hf_pacgen.data.contents import LABEL_NAMES
from hf_pacgen.maths.distributions import NoiseDistribution
from hf_pacgen.model.state import base_model, unwrap
from hf_pacgen.noise.perturbed import perturbed
from hf_pacgen.promises.selective import chances_of

__all__ = ["NoisyModel"]


class NoisyModel(nn.Module):
    """A classifier that answers with the mean probabilities of a model under draws of noise on its weights.

    The draws are the same for every input, so that its answers are deterministic, and may be promised as those of any
    other model: ``promise(NoisyModel(model, 0.01), held_out, max_error=0.05)``.

    Args:
        model: of transformers with one class for an example, or another with ``logits`` among its outputs.
        noise_scale, distribution: as for :func:`hf_pacgen.perturbed`; the standard deviation of normal noise.
        draws: how many; each costs a forward pass.
        seed: of the first draw.

    Raises:
        ValueError: what :func:`hf_pacgen.perturbed` raises, and outputs without logits (examples, classes).
    """

    def __init__(
        self,
        model: nn.Module,
        noise_scale: float | Mapping[str, Tensor | float],
        *,
        distribution: NoiseDistribution | str = NoiseDistribution.NORMAL,
        draws: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.noise_scale, self.distribution = unwrap(model), noise_scale, NoiseDistribution(distribution)
        self.draws, self.seed = count(draws, "draws"), seed_rule(seed, "seed")
        said = described(
            "noise", {"scale": noise_scale, "distribution": self.distribution, "draws": draws, "seed": seed}
        )
        number = zlib.crc32(repr(sorted(said.items())).encode())
        # by which the weights of other noise are other weights to whoever compares them; as whole numbers of float32
        self.settings = nn.Parameter(torch.tensor([float(number >> 16), float(number & 0xFFFF)]), requires_grad=False)

    @property
    def config(self) -> Any:
        """That of the model."""
        return getattr(self.model, "config", None)

    def get_base_model(self) -> nn.Module:
        """The model, whose inputs these are."""
        return base_model(self.model)

    @torch.no_grad()
    def forward(self, **inputs: Any) -> dict[str, Tensor]:
        """The logarithms of the mean probabilities, as logits."""
        inputs = {name: value for name, value in inputs.items() if name not in LABEL_NAMES}
        total: Any = 0.0
        for draw in range(self.draws):
            with perturbed(self.model, self.noise_scale, distribution=self.distribution, seed=self.seed + draw):
                outputs = self.model(**inputs)
            logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
            if not isinstance(logits, Tensor) or logits.ndim != 2:
                raise ValueError(
                    "NoisyModel averages the probabilities of classes: expected a model with logits (examples, "
                    f"classes) among its outputs; got {type(outputs).__name__}. Take the plain model."
                )
            total = total + chances_of(logits).double() / self.draws
        # a probability of 0 would have no logarithm
        return {"logits": total.clamp_min(torch.finfo(torch.float64).tiny).log()}
