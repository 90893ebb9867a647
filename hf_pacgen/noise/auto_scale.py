"""How much of its largest noise a run gets, step by step, from what its training losses tell."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["AutoScale"]

FADES = 0.5
"""Factor by which the evidence of older passes fades with each new one."""
TEACHES = 0.6
"""Part of what a pass taught that the next one is expected to teach at most."""
SPREAD = 0.25
"""Standard deviation of the share c about what is expected of it before its pass is seen."""
WINDOW = 20
"""Optimizer steps over which the running loss is a mean, at most those of a pass."""
FULL_BELOW = 0.5
"""Part of the target at which the noise is at its largest."""


@dataclass
class Pass:
    """Sums over the losses of a pass, in order, for the straight line a + b x through them, x from -½ to ½."""

    count: int = 0  # N
    total: float = 0.0  # Σ ℓ_t
    moment: float = 0.0  # Σ t ℓ_t, t from 0
    squares: float = 0.0  # Σ ℓ_t²

    def add(self, loss: float) -> None:
        """Count the loss of the next optimizer step."""
        self.moment += self.count * loss
        self.total += loss
        self.squares += loss * loss
        self.count += 1

    @property
    def mean(self) -> float:
        """a, by least squares."""
        return self.total / self.count

    @property
    def _spread(self) -> float:
        # Σ x_t² with x_t = (t + ½)/N - ½
        return (self.count**2 - 1) / (12 * self.count)

    @property
    def slope(self) -> float:
        """b, by least squares; 0 of a single step."""
        if self.count < 2:
            return 0.0
        return (self.moment - (self.count - 1) / 2 * self.total) / self.count / self._spread

    @property
    def variance(self) -> float:
        """The squared standard error of b, from the residuals; infinite where there are none."""
        if self.count < 3:
            return math.inf
        residuals = self.squares - self.count * self.mean**2 - self.slope**2 * self._spread
        return max(0.0, residuals) / (self.count - 2) / self._spread


class AutoScale:
    r"""The factor of the noise, from 0 to 1, that follows a run: none while it learns, more as it begins to remember.

    Within a pass through shuffled data every example has been seen equally often, so what the loss falls *within* a
    pass was learned from other examples.  What it falls *from the end of a pass to the beginning of the next*, where
    the weights are the same and each example has been seen once more, was remembered from the example itself.  With
    a_k + b_k x, x from -½ to ½, the straight line through the losses of the optimizer steps of pass k, and v_k the
    squared standard error of b_k:

        fall from pass to pass            D_k = a_{k-1} - a_k
        of it, learned from others        S_k = -(b_{k-1} + b_k)/2,   variance V_k = (v_{k-1} + v_k)/4
        evidence                          D = Σ_j ½^{k-j} D_j,   S = Σ_j ½^{k-j} S_j,   V = Σ_j ¼^{k-j} V_j
        expected share                    e_k = min(1, 0.6 t_{k-1}/D_k),   e_2 = 1
        share learned from others         c_k = (S D/V + e_k/τ²) / (D²/V + 1/τ²), within 0 … 1
        what the pass taught              t_k = max(c_k D_k, 0.6 t_{k-1})
        what would be left unremembered   T_k = T_{k-1} - c_k max(D_k, 0),   T_1 = a_1

    c_k is the mean of S ~ N(c D, V) and c ~ N(e_k, τ²), τ = ¼: where a pass has so few steps that its slope says
    little, it is taken to teach at most 0.6 of what the pass before taught.  What is learned falls off like that; what
    is remembered does not, until all is.  Between two passes T falls on by c_k times what the running loss ℓ (of the
    noisy steps) falls.  The factor is

        f = (T - ℓ) / (T/2), within 0 … 1.

    It is made of ratios of losses of one run: neither the unit of the loss nor the number of classes nor that of the
    examples matters.  Losses have to be positive.  In the first pass nothing comes again, and f is 0.

    In PAC-Bayes terms: to the second order, the noise that minimizes E L(w+u) + KL/η makes the loss rise by
    E L(w+u) - L(w) = Σσ²H/6 ≈ KL/η, the price of what the weights know of these very examples, in nats an example
    at η = n.  T less the loss without noise is an estimate of that price from the losses alone; the noise grows until
    it has made the loss rise by most of it.

    Args:
        steps_per_pass: optimizer steps in which all examples are seen once; None where it is not known, and the
            factor stays 0.
    """

    def __init__(self, steps_per_pass: int | None) -> None:
        if steps_per_pass is not None and steps_per_pass < 1:
            raise ValueError(f"A pass has at least one optimizer step; got {steps_per_pass}.")
        self.steps_per_pass = steps_per_pass
        self.factor = 0.0
        self.running: float | None = None  # ℓ
        self.target: float | None = None  # T at the end of the last pass
        self.share = 1.0  # c
        self.heard = 0  # optimizer steps
        self._fallen = self._learned = self._variance = 0.0  # D, S, V
        self._taught: float | None = None  # t
        self._now, self._last = Pass(), Pass()

    def hear(self, losses: Iterable[float]) -> None:
        """Learn of the losses of the next optimizer steps, each with the noise that it had.

        One that is no finite number counts as the running loss.
        """
        for loss in losses:
            self._hear(loss if math.isfinite(loss) else self.running)
        self.factor = self._factor()

    def _hear(self, loss: float | None) -> None:
        self.heard += 1
        if loss is None:
            return
        fades = 1 - 1 / min(WINDOW, self.steps_per_pass or WINDOW)
        self.running = loss if self.running is None else fades * self.running + (1 - fades) * loss
        self._now.add(loss)
        if self.steps_per_pass and self.heard % self.steps_per_pass == 0:
            self._end_of_pass()

    def _end_of_pass(self) -> None:
        done, before = self._now, self._last
        self._now, self._last = Pass(), done
        if self.target is None:
            self.target = done.mean
            return
        fallen = before.mean - done.mean
        self._fallen = FADES * self._fallen + fallen
        self._learned = FADES * self._learned - (before.slope + done.slope) / 2
        self._variance = FADES**2 * self._variance + (before.variance + done.variance) / 4
        at_most = None if self._taught is None else TEACHES * self._taught
        expected = 1.0 if at_most is None or fallen <= at_most else at_most / fallen
        self.share = min(1.0, max(0.0, self._mean_share(expected, 1 / SPREAD**2)))
        learned = max(fallen, 0.0) * self.share
        self.target -= learned
        self._taught = learned if at_most is None else max(learned, at_most)

    def _mean_share(self, expected: float, precision: float) -> float:
        # losses that lie on a line have no variance, and the quotient of the sums is all there is to know
        if self._fallen <= 0 or math.isinf(self._variance):
            return expected
        if self._variance == 0:
            return self._learned / self._fallen
        evidence = self._fallen / self._variance
        return (self._learned * evidence + expected * precision) / (self._fallen * evidence + precision)

    def _factor(self) -> float:
        if self.target is None or self.running is None:
            return 0.0
        target = self.target - max(self._last.mean - self.running, 0.0) * self.share
        return min(1.0, max(0.0, (target - self.running) / (FULL_BELOW * target))) if target > 0 else 0.0

    # --------------------------------------------------------------------------------------------- checkpoints

    _KEPT = ("factor", "running", "target", "share", "heard", "_fallen", "_learned", "_variance", "_taught")

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep, as JSON-able values."""
        lines = {"now": asdict(self._now), "last": asdict(self._last), "steps_per_pass": self.steps_per_pass}
        kept = {name.strip("_"): getattr(self, name) for name in self._KEPT}
        # JSON has no infinity
        return lines | kept | {"variance": self._variance if math.isfinite(self._variance) else None}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state` was.

        Raises:
            ValueError: the state is of a run with another number of steps in a pass.
        """
        if state["steps_per_pass"] != self.steps_per_pass:
            raise ValueError(
                f"The noise of the checkpoint follows passes of {state['steps_per_pass']} optimizer steps, and a pass "
                f"of this run has {self.steps_per_pass}. Resume with the data, batch size, accumulation and number of "
                "processes of before, or set scale to a number."
            )
        for name in self._KEPT:
            setattr(self, name, state[name.strip("_")])
        self._variance = math.inf if self._variance is None else self._variance
        self._now, self._last = Pass(**state["now"]), Pass(**state["last"])
