"""The combined bound: its accounts, its choices, and its failure rate on 1,000 learning problems."""

import math

import pytest
import torch

from hf_pacgen.maths.certified_bound import Bound, CertifiedBound, certified_bound
from hf_pacgen.maths.distributions import Normal
from hf_pacgen.maths.pac_bayes import (
    ARTICLE_CONSTANT,
    TIGHT_CONSTANT,
    eta_grid,
    hoeffding_bound,
    hoeffding_bound_over_grid,
    kl_bound,
    monte_carlo_bound,
)

PROBLEMS = 1000


# --- accounts -------------------------------------------------------------------------------------------------


def test_an_exact_mean_gives_all_of_delta_to_the_bound():
    result = certified_bound(0.1, 20.0, 1000, delta=0.05)
    assert result.bound == kl_bound(0.1, 20.0, 1000, 0.05).item()
    assert (result.delta_bound, result.delta_monte_carlo) == (0.05, 0.0)
    assert (result.empirical_bound, result.mean, result.kl, result.eta, result.index) == (0.1, 0.1, 20.0, None, 0)


def test_delta_is_split_between_the_draws_and_the_bound():
    result = certified_bound(0.1, 20.0, 1000, delta=0.05, draws=400, monte_carlo_share=0.2, num_priors=5, looks=2)
    assert result.delta_monte_carlo == pytest.approx(0.2 * 0.05 / 2)
    assert result.delta_bound == pytest.approx(0.8 * 0.05 / 5)
    assert result.empirical_bound == monte_carlo_bound(0.1, 400, result.delta_monte_carlo).item()
    assert result.bound == kl_bound(result.empirical_bound, 20.0, 1000, result.delta_bound).item()
    tighter = certified_bound(0.1, 20.0, 1000, delta=0.05, draws=400, one_sided=True)
    assert tighter.bound < certified_bound(0.1, 20.0, 1000, delta=0.05, draws=400).bound


@pytest.mark.parametrize(
    ("kind", "constant"), [("hoeffding", TIGHT_CONSTANT), (Bound.HOEFFDING_ARTICLE, ARTICLE_CONSTANT)]
)
def test_hoeffding_pays_for_priors_and_etas(kind, constant):
    result = certified_bound(0.1, 20.0, 1000, delta=0.05, bound=kind, num_priors=3, etas=[100.0, 400.0])
    assert result.eta in (100.0, 400.0) and result.delta_bound == pytest.approx(0.05 / 6)
    assert result.bound == pytest.approx(
        hoeffding_bound(0.1, 20.0, 1000, 0.05 / 6, result.eta, constant=constant).item(), rel=1e-14
    )
    drawn = certified_bound(0.1, 20.0, 1000, delta=0.1, bound=kind, num_priors=3, etas=[100.0, 400.0], draws=50)
    assert drawn.bound - drawn.empirical_bound == pytest.approx(result.bound - result.mean, rel=1e-12)
    default = certified_bound(0.1, 20.0, 1000, delta=0.05, bound=kind, num_priors=3)
    grid = eta_grid(1000, 0.05 / 3, constant=constant)
    expected, eta = hoeffding_bound_over_grid(0.1, 20.0, 1000, 0.05 / 3, grid, constant=constant)
    assert (default.bound, default.eta) == (expected.item(), eta.item())


def test_the_best_candidate_wins():
    mean, kl = torch.tensor([[0.1], [0.4]]), torch.tensor([60.0, 20.0, 30.0])
    result = certified_bound(mean, kl, 1000, delta=0.05, draws=100, num_priors=3)
    assert (result.index, result.kl) == (1, 20.0) and result.mean == pytest.approx(0.1)
    assert result.delta_monte_carlo == pytest.approx(0.025 / 2)  # two posteriors' draws
    assert result.delta_bound == pytest.approx(0.025 / 3)  # three priors
    alone = certified_bound(0.1, 20.0, 1000, delta=0.05, draws=100)
    assert alone.bound < result.bound < alone.bound + 0.05


def test_monotone():
    def bound(mean=0.1, kl=20.0, n=1000, delta=0.05, draws=400):
        return certified_bound(mean, kl, n, delta=delta, draws=draws).bound

    base = bound()
    assert bound(mean=0.12) > base and bound(kl=25.0) > base and bound(n=900) > base
    assert bound(delta=0.01) > base and bound(draws=200) > base


@pytest.mark.parametrize("kind", list(Bound))
def test_a_vacuous_bound_says_so_and_returns(kind):
    result = certified_bound(0.3, 1e6, 100, delta=0.05, draws=10, bound=kind)
    assert isinstance(result, CertifiedBound) and result.vacuous and result.bound == 1.0
    assert not certified_bound(0.1, 1.0, 10_000, delta=0.05, bound=kind).vacuous
    assert certified_bound(1.0, 0.0, 10**9, delta=0.05, bound=kind).vacuous
    assert certified_bound(0.0, 0.0, 1, delta=0.05, bound=kind).vacuous == (kind is not Bound.KL)


def test_refusals():
    with pytest.raises(ValueError, match="bound must be one of 'kl', 'hoeffding', 'hoeffding_article'; got 'tight'"):
        certified_bound(0.1, 1.0, 10, delta=0.05, bound="tight")
    with pytest.raises(ValueError, match="The kl bound has no eta"):
        certified_bound(0.1, 1.0, 10, delta=0.05, etas=[1.0])
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"monte_carlo_share must be in \(0, 1\)"):
            certified_bound(0.1, 1.0, 10, delta=0.05, draws=10, monte_carlo_share=share)
    with pytest.raises(ValueError, match="at least one value"):
        certified_bound(0.1, 1.0, 10, delta=0.05, num_priors=0)
    with pytest.raises(ValueError, match="at least one value"):
        certified_bound(0.1, 1.0, 10, delta=0.05, draws=10, looks=0)
    with pytest.raises(ValueError, match=r"mean must be in \[0, 1\]; got 3"):
        certified_bound(3.0, 1.0, 10, delta=0.05)
    with pytest.raises(ValueError, match=r"delta must be in \(0, 1\)"):
        certified_bound(0.1, 1.0, 10, delta=1.0)


# --- validity: thresholds on a line, 10 % of the labels flipped ------------------------------------------------

NOISE = 0.1
PRIOR_SCALES = torch.tensor([0.1, 0.3, 1.0], dtype=torch.float64)


def normal_cdf(x):
    return 0.5 * torch.erfc(-x / math.sqrt(2))


class Thresholds:
    """1,000 problems: the label is 1[x > t] for x ~ U(0, 1), flipped with probability 0.1; t ~ U(0.2, 0.8).

    The posterior is N(t̂, s²) around the empirical risk minimizer t̂, the prior N(0.5, τ²).  The true risk
    of a threshold v is 0.1 + 0.8 |v - t|, v clipped to [0, 1].
    """

    def __init__(self, n, scale=0.03):
        g = torch.Generator().manual_seed(n)
        self.n, self.scale = n, scale
        self.truth = 0.2 + 0.6 * torch.rand(PROBLEMS, 1, generator=g, dtype=torch.float64)
        self.x = torch.rand(PROBLEMS, n, generator=g, dtype=torch.float64)
        flip = torch.rand(PROBLEMS, n, generator=g) < NOISE
        self.label = (self.x > self.truth) ^ flip
        grid = torch.linspace(0, 1, 41, dtype=torch.float64)
        risks = torch.stack([((self.x > v) ^ self.label).double().mean(dim=1) for v in grid])
        self.center = grid[risks.argmin(dim=0)][:, None]
        self.posterior = Normal(torch.full((PROBLEMS, 1), scale, dtype=torch.float64))
        self.kl = self.posterior.kl_to_normal(self.center, 0.5, PRIOR_SCALES)  # (problems, priors)

    def empirical(self):
        """Exact E_u L̂."""
        says_one = normal_cdf((self.x - self.center) / self.scale)
        return torch.where(self.label, 1 - says_one, says_one).mean(dim=1)

    def risk(self):
        """E_u L, by the midpoint rule over ± 6 s."""
        step = torch.linspace(-6, 6, 1201, dtype=torch.float64)
        density = (-step.square() / 2).exp()
        distance = ((self.center + self.scale * step).clamp(0, 1) - self.truth).abs()
        return NOISE + (1 - 2 * NOISE) * (distance * density).sum(dim=1) / density.sum()


@pytest.fixture(scope="module")
def thresholds():
    return Thresholds(n=800)


def test_every_bound_holds_on_learning_problems_and_is_not_loose(thresholds):
    """Each fails in at most δ of the problems; the median of the best over priors is below 2× the true risk."""
    delta, n = 0.05, thresholds.n
    loss, risk = thresholds.empirical()[:, None], thresholds.risk()
    paid = delta / len(PRIOR_SCALES)
    bounds = {
        "kl": kl_bound(loss, thresholds.kl, n, paid),
        "hoeffding": hoeffding_bound_over_grid(loss, thresholds.kl, n, paid, eta_grid(n, paid))[0],
        "article": hoeffding_bound_over_grid(
            loss, thresholds.kl, n, paid, eta_grid(n, paid, constant=2), constant=ARTICLE_CONSTANT
        )[0],
    }
    for name, values in bounds.items():
        best = values.amin(dim=1)
        failed = (risk > best).double().mean().item()
        assert failed <= delta + 3 * math.sqrt(delta * (1 - delta) / PROBLEMS), name
        assert (best / risk).median() < (2.0 if name != "article" else 3.0), name
    assert bounds["kl"].amin(dim=1).median() < bounds["hoeffding"].amin(dim=1).median()


def test_the_combined_bound_holds_with_few_draws_of_the_noise(thresholds):
    """20 draws a problem, so that the Monte-Carlo correction matters; δ = 0.2."""
    delta, draws, risk = 0.2, 20, thresholds.risk()
    noise = thresholds.posterior.sample(torch.Generator().manual_seed(1), shape=(draws, PROBLEMS, 1))
    errors = [((thresholds.x > thresholds.center + u) ^ thresholds.label).double().mean(dim=1) for u in noise]
    mean = torch.stack(errors).mean(dim=0)
    bounds = [
        certified_bound(mean[i], thresholds.kl[i], thresholds.n, delta=delta, draws=draws, num_priors=3).bound
        for i in range(PROBLEMS)
    ]
    failed = (risk > torch.tensor(bounds, dtype=torch.float64)).double().mean().item()
    assert failed <= delta + 3 * math.sqrt(delta * (1 - delta) / PROBLEMS)
    assert (torch.tensor(bounds) / risk).median() < 4


def test_a_loss_of_draws_alone_is_seen():
    """One hypothesis in effect (KL = 0) and a huge n: only the Monte-Carlo term protects, and it does, barely."""
    delta, draws, p = 0.2, 30, 0.3
    count = torch.full((PROBLEMS,), float(draws), dtype=torch.float64)
    means = torch.binomial(count, torch.full_like(count, p), generator=torch.Generator().manual_seed(2)) / draws
    values, where = means.unique(return_inverse=True)
    bounds = torch.tensor(
        [
            certified_bound(v, 0.0, 10**9, delta=delta, draws=draws, one_sided=True, monte_carlo_share=0.9).bound
            for v in values
        ]
    )[where]
    failed = (bounds < p).double().mean().item()
    assert delta / 10 <= failed <= delta + 3 * math.sqrt(delta * (1 - delta) / PROBLEMS)
    assert (means < p).double().mean() > 2 * delta, "the simulation would not see a missing correction"


def test_closed_form_scales_come_near_the_numerical_optimum(thresholds):
    """The bound of a Laplace-shaped s² = 1/(ηH + 1/τ²) is within 5 % of the best over all s, in every problem.

    H of the smoothed 0-1 loss is estimated by a wide second difference of the empirical risk.
    """
    reach, eta, n = 0.1, 2000.0, thresholds.n

    def risk_at(shift):
        return ((thresholds.x > thresholds.center + shift) ^ thresholds.label).double().mean(dim=1)

    hessian = ((risk_at(reach) - 2 * risk_at(0.0) + risk_at(-reach)) / reach**2).clamp(min=0)
    shaped = (1 / (eta * hessian + 1 / 0.3**2)).sqrt()

    def bound(scale):
        says_one = normal_cdf((thresholds.x - thresholds.center) / scale[:, None])
        loss = torch.where(thresholds.label, 1 - says_one, says_one).mean(dim=1)
        return kl_bound(loss, Normal(scale).kl_to_normal(thresholds.center[:, 0], 0.5, 0.3), n, 0.05)

    best = torch.stack([bound(torch.full_like(shaped, s)) for s in torch.logspace(-3.5, -0.5, 20).tolist()]).amin(dim=0)
    assert (bound(shaped) / best).max() < 1.05
    assert (bound(torch.full_like(shaped, 0.3)) / best).median() > 1.7  # the prior's own scale: too noisy
    assert (bound(torch.full_like(shaped, 1e-4)) / best).median() > 1.05  # next to no noise: the KL is felt
