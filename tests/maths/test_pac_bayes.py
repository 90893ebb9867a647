"""The bounds against their formulas, their trends, and simulations in which an adversary picks the posterior."""

import math

import pytest
import torch

from hf_pacgen.maths.binary_kl import binary_kl
from hf_pacgen.maths.pac_bayes import (
    ARTICLE_CONSTANT,
    TIGHT_CONSTANT,
    effective_draws,
    empirical_bernstein_bound,
    eta_grid,
    hoeffding_bound,
    hoeffding_bound_over_grid,
    kl_bound,
    monte_carlo_bound,
    union_bound,
)

PROBLEMS = 1000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def allowed(rate, problems=PROBLEMS):
    """A failure probability and three standard deviations of the count that estimates it."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / problems)


def hoeffding(loss, kl, n, delta):
    return hoeffding_bound(loss, kl, n, delta, 200.0)


def hoeffding_grid(loss, kl, n, delta):
    return hoeffding_bound_over_grid(loss, kl, n, delta, [30.0, 200.0, 1000.0])[0]


BOUNDS = [hoeffding, hoeffding_grid, kl_bound]


# --- formulas -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("constant", "term"), [(ARTICLE_CONSTANT, 50 / 200), (TIGHT_CONSTANT, 50 / 800)])
def test_hoeffding_formula(constant, term):
    bound = hoeffding_bound(0.2, 3.0, 100, 0.05, 50.0, constant=constant)
    assert bound.item() == pytest.approx(0.2 + (3 + math.log(20)) / 50 + term, rel=1e-14)
    assert hoeffding_bound(0.2, 3.0, 100, 0.05, 50.0).item() <= bound.item()


def test_eight_is_the_largest_constant_that_holds():
    """E exp(η(p - coin)) ≤ exp(η²/c) for every coin and η needs c ≤ 8."""
    p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    eta = torch.logspace(-2, 1, 40, dtype=torch.float64)[:, None]
    moment = (p * (eta * (p - 1)).exp() + (1 - p) * (eta * p).exp()).log()
    assert (moment <= eta**2 / TIGHT_CONSTANT).all()
    assert not (moment <= eta**2 / (1.01 * TIGHT_CONSTANT)).all()


def test_grid_takes_the_best_eta_and_pays_for_the_others():
    etas = torch.tensor([10.0, 100.0, 1000.0])
    kl = torch.tensor([[0.1], [40.0]])
    bound, eta = hoeffding_bound_over_grid(torch.tensor([0.1, 0.3]), kl, 500, 0.05, etas)
    each = torch.stack([hoeffding_bound(torch.tensor([0.1, 0.3]), kl, 500, 0.05 / 3, e) for e in etas])
    torch.testing.assert_close(bound, each.min(dim=0).values, rtol=1e-14, atol=0)
    assert eta.tolist() == [[100.0, 100.0], [1000.0, 1000.0]]


@pytest.mark.parametrize("n", [1, 50, 12_000, 10**9])
@pytest.mark.parametrize("constant", [ARTICLE_CONSTANT, TIGHT_CONSTANT])
def test_eta_grid_holds_a_nearly_optimal_eta(n, constant):
    """At the best η the two terms are equal, 2 sqrt((KL + log(1/δ))/(cn)); a factor √2 beside it costs 6.1 %."""
    delta, grid = 0.05, eta_grid(n, 0.05, constant=constant)
    smallest = -math.log(delta)
    kl = torch.linspace(0, max(0.0, constant * n - smallest), 50, dtype=torch.float64)[:, None]
    best = 2 * ((kl + smallest) / (constant * n)).sqrt()
    reached = hoeffding_bound(0.0, kl, n, delta, grid, constant=constant).min(dim=-1, keepdim=True).values
    assert (reached <= 1.0607 * best).all()


@pytest.mark.parametrize("n", [1, 100, 10**9])
def test_kl_bound_formula(n):
    bound = kl_bound(0.2, 3.0, n, 0.05)
    assert binary_kl(0.2, bound).item() == pytest.approx((3 + math.log(2 * math.sqrt(n) / 0.05)) / n, rel=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 50, 1000])
def test_the_constant_of_the_kl_bound_holds_for_every_n(n):
    """E exp(n kl(k/n‖p)) = Σ_k C(n,k) (k/n)^k (1-k/n)^(n-k) ≤ 2√n, read back from the bound at loss 0, KL 0."""
    constant = 0.5 * math.exp(n * binary_kl(0.0, kl_bound(0.0, 0.0, n, 0.5)).item())
    k = torch.arange(n + 1, dtype=torch.float64)
    choose = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    moment = (choose + torch.xlogy(k, k / n) + torch.xlogy(n - k, 1 - k / n)).exp().sum().item()
    assert moment <= constant * (1 + 1e-9) and constant <= 2 * moment


def test_monte_carlo_formula():
    for one_sided, inverse in [(False, 2 / 0.01), (True, 1 / 0.01)]:
        bound = monte_carlo_bound(0.3, 500, 0.01, one_sided=one_sided)
        assert binary_kl(0.3, bound).item() == pytest.approx(math.log(inverse) / 500, rel=1e-10)


def test_union_bound_costs_the_log_of_the_grid():
    assert union_bound(0.05).item() == 0.05
    assert union_bound(0.06, 3, 4).item() == pytest.approx(0.005, rel=1e-15)
    plain, paid = (hoeffding_bound(0.1, kl, 100, d, 9.0) for kl, d in [(math.log(7), 0.05), (0.0, 0.05 / 7)])
    assert plain.item() == pytest.approx(paid.item(), rel=1e-14)


# --- trends, shapes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", BOUNDS)
def test_monotone(bound):
    up = torch.linspace(0, 1, 40, dtype=torch.float64)
    grows = {
        "loss": bound(0.5 * up, 5.0, 1000, 0.05),
        "kl": bound(0.1, 50 * up, 1000, 0.05),
        "n": bound(0.1, 5.0, 1000 / (1 + up), 0.05),
        "delta": bound(0.1, 5.0, 1000, 0.9 - 0.899 * up),
    }
    for name, values in grows.items():
        assert (values.diff() > 0).all(), name


@pytest.mark.parametrize("bound", BOUNDS)
def test_elementwise_in_float64(bound):
    loss = torch.tensor([0.1, 0.2, 0.3])
    values = bound(loss, torch.tensor([[1.0], [9.0]]), torch.tensor(500), 0.05)
    assert values.shape == (2, 3) and values.dtype == torch.float64
    torch.testing.assert_close(values[1, 2], bound(loss[2].item(), 9, 500, 0.05), rtol=1e-14, atol=0)


@pytest.mark.parametrize("bound", BOUNDS)
def test_never_below_the_loss_and_never_tight_for_nothing(bound):
    loss = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert (bound(loss, 0.0, 50, 0.05) >= loss).all()
    assert kl_bound(loss, 1e6, 50, 0.05).tolist() == [1.0] * 11
    assert hoeffding_grid(0.1, 1e6, 50, 0.05).item() > 1


def test_kl_bound_is_below_hoeffding_at_the_best_eta():
    """By Pinsker, when both pay log(2√n/δ); and far below when the loss is small, whatever they pay."""
    loss, kl, n, delta = torch.tensor([0.0, 0.1, 0.4]), torch.tensor([[10.0], [100.0]]), 5000, 0.05
    etas = torch.logspace(1, 5, 400)[:, None, None]
    equal_pay, plain = (hoeffding_bound(loss, kl, n, d, etas).amin(dim=0) for d in (delta / (2 * math.sqrt(n)), delta))
    assert (kl_bound(loss, kl, n, delta) <= equal_pay).all()
    assert (kl_bound(loss, kl, n, delta)[:, 0] < 0.25 * plain[:, 0]).all()


def test_bounds_can_be_minimized():
    loss = torch.tensor([0.1, 0.3], dtype=torch.float64, requires_grad=True)
    kl = torch.tensor([2.0, 30.0], dtype=torch.float64, requires_grad=True)
    for bound in BOUNDS:
        assert torch.autograd.gradcheck(lambda a, b, bound=bound: bound(a, b, 300, 0.05), (loss, kl))


# --- validity, by simulation ----------------------------------------------------------------------------------


def coins(n, hypotheses, p, seed):
    """Empirical losses of hypotheses with true risk p and independent errors, in PROBLEMS problems."""
    count = torch.full((PROBLEMS, hypotheses), float(n), dtype=torch.float64)
    return torch.binomial(count, torch.full_like(count, p), generator=generator(seed)) / n


def gibbs(losses, p, eta):
    """The posterior that fools Hoeffding's bound most: it knows the truth and seeks p - L̂.  (L̂, KL)."""
    weights = (eta * (p - losses)).softmax(dim=1)
    kl = torch.xlogy(weights, weights * losses.shape[1]).sum(dim=1)
    return (weights * losses).sum(dim=1), kl.clamp(min=0)


@pytest.mark.parametrize("delta", [0.05, 0.3])
@pytest.mark.parametrize("hypotheses", [1, 16])
def test_hoeffding_holds_against_an_adversary_and_only_just(delta, hypotheses):
    """The posterior attains the supremum over all posteriors, so nothing is left but Markov's inequality."""
    n, p = 200, 0.5
    eta = math.sqrt(8 * n * math.log(1 / delta))  # where one hypothesis fails most often
    loss, kl = gibbs(coins(n, hypotheses, p, seed=1), p, eta)
    failed = (p > hoeffding_bound(loss, kl, n, delta, eta)).double().mean().item()
    assert failed <= allowed(delta)
    assert hypotheses > 1 or failed >= delta / 20
    article = (p > hoeffding_bound(loss, kl, n, delta, eta, constant=ARTICLE_CONSTANT)).double().mean().item()
    assert article <= failed
    without_confidence = (p > hoeffding_bound(loss, kl, n, 1 - 1e-9, eta)).double().mean().item()
    assert without_confidence > allowed(delta) or delta > 0.1, "the simulation would not see a missing log(1/δ)"


@pytest.mark.parametrize("p", [0.1, 0.3])
@pytest.mark.parametrize("bound", [hoeffding_grid, kl_bound])
def test_bounds_hold_for_all_posteriors_at_once(bound, p):
    """A problem counts as failed if any of many posteriors on it breaks the bound; the best of 1,000 is lucky."""
    delta, n, losses = 0.2, 100, coins(100, 1000, p, seed=2)
    failed = torch.zeros(PROBLEMS, dtype=torch.bool)
    for eta in [0.0, 10.0, 30.0, 100.0, 300.0, 1e5]:
        loss, kl = gibbs(losses, p, eta)
        failed |= bound(loss, kl, n, delta) < p
    assert failed.double().mean().item() <= allowed(delta)


@pytest.mark.parametrize("p", [0.05, 0.5])
@pytest.mark.parametrize(("one_sided", "share"), [(False, 0.5), (True, 1.0)])
def test_monte_carlo_bound_holds_at_its_rate(p, one_sided, share):
    """The one-sided form may use all of δ', the two-sided half of it; Chernoff leaves a factor of a few."""
    problems, delta = 20_000, 0.2
    count = torch.full((problems,), 60.0, dtype=torch.float64)
    mean = torch.binomial(count, torch.full_like(count, p), generator=generator(3)) / 60
    failed = (p > monte_carlo_bound(mean, 60, delta, one_sided=one_sided)).double().mean().item()
    assert share * delta / 8 <= failed <= allowed(share * delta, problems)


@pytest.mark.parametrize(("sizes", "least"), [([32.0] * 12 + [20.0] * 6 + [3.0], 0.01), ([200.0] + [4.0] * 50, 0.0)])
def test_ragged_batches_with_draws_of_their_own_count_as_effective_draws(sizes, least):
    """Batches of different size and difficulty, one draw each: the weighted mean obeys K = 1/max w."""
    problems, delta = 20_000, 0.2
    share = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    risk = torch.linspace(0.3, 0.05, len(sizes), dtype=torch.float64)
    draws = (torch.rand(problems, len(sizes), dtype=torch.float64, generator=generator(4)) < risk).double()
    mean, truth = (draws * share).sum(dim=1), (share * risk).sum()

    def failed(count):
        return (truth > monte_carlo_bound(mean, count, delta, one_sided=True)).double().mean().item()

    assert least <= failed(effective_draws(sizes)) <= allowed(delta, problems)
    assert least > 0 or failed(len(sizes)) > 2 * delta, "the simulation would not see a plain count of batches"


def test_equal_batches_count_fully():
    assert effective_draws([7.0] * 9) == pytest.approx(9.0)
    assert effective_draws(torch.tensor([32, 32, 32, 4])) == 3.125


def test_stopping_at_the_best_of_planned_looks_is_paid_for():
    problems, delta, p, looks = 5_000, 0.1, 0.2, [20, 40, 80, 160, 320]
    draws = (torch.rand(problems, looks[-1], generator=generator(5)) < p).double().cumsum(dim=1)

    def best(share):
        values = [monte_carlo_bound(draws[:, k - 1] / k, k, share, one_sided=True) for k in looks]
        return torch.stack(values).min(dim=0).values

    assert (p > best(union_bound(delta, len(looks)))).double().mean().item() <= allowed(delta, problems)
    assert (p > best(delta)).double().mean() > 1.5 * (p > best(delta / 5)).double().mean()


# --- refusals -------------------------------------------------------------------------------------------------

GOOD = {"loss": 0.1, "kl": 1.0, "n": 10, "delta": 0.05}


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("loss", 2.3, r"loss must be in \[0, 1\]; got 2.3. Bounds need a bounded loss"),
        ("loss", torch.tensor([0.1, -0.5]), r"loss must be in \[0, 1\]; got -0.5"),
        ("kl", -1.0, r"kl must be in \[0, inf\); got -1"),
        ("kl", math.inf, r"kl must be in \[0, inf\); got inf. An infinite KL means"),
        ("kl", math.nan, r"kl must be in \[0, inf\); got nan"),
        ("n", 0, r"n must be in \[1, inf\); got 0"),
        ("delta", 0.0, r"delta must be in \(0, 1\); got 0.0. It is the probability that the bound fails"),
        ("delta", 1.0, r"delta must be in \(0, 1\); got 1.0"),
    ],
)
def test_refuses_arguments_out_of_range(bound, name, value, message):
    with pytest.raises(ValueError, match=message):
        bound(**(GOOD | {name: value}))


def test_other_refusals():
    with pytest.raises(ValueError, match=r"eta must be in \(0, inf\); got 0"):
        hoeffding_bound(**GOOD, eta=0.0)
    for constant in (0.0, 9.0, math.nan):
        with pytest.raises(ValueError, match=r"constant must be in \(0, 8\]"):
            hoeffding_bound(**GOOD, eta=1.0, constant=constant)
    with pytest.raises(ValueError, match="at least one value"):
        hoeffding_bound_over_grid(**GOOD, etas=[])
    with pytest.raises(ValueError, match=r"ratio must be in \(1, inf\); got 1"):
        eta_grid(10, 0.05, ratio=1.0)
    with pytest.raises(ValueError, match=r"constant must be in \(0, 8\]"):
        eta_grid(10, 0.05, constant=-2.0)
    with pytest.raises(ValueError, match=r"n must be in \[1, inf\)"):
        eta_grid(0, 0.05)
    for size in (0, 2.0, True):
        with pytest.raises(ValueError, match="at least one value, counted by an integer"):
            union_bound(0.05, 3, size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="delta must be"):
        union_bound(2.0)
    with pytest.raises(ValueError, match=r"mean must be in \[0, 1\]"):
        monte_carlo_bound(1.5, 10, 0.05)
    with pytest.raises(ValueError, match=r"draws must be in \[1, inf\); got 0"):
        monte_carlo_bound(0.5, 0, 0.05)
    with pytest.raises(ValueError, match=r"delta must be in \(0, 1\)"):
        monte_carlo_bound(0.5, 10, 1.0)
    with pytest.raises(ValueError, match="the weight of at least one evaluation"):
        effective_draws([])
    with pytest.raises(ValueError, match=r"weights must be in \(0, inf\); got 0"):
        effective_draws([3, 0])
    with pytest.raises(ValueError, match="needs at least two values; got 1"):
        empirical_bernstein_bound([0.5], 0.1)
    with pytest.raises(ValueError, match=r"values must be in \[0, 1\]"):
        empirical_bernstein_bound([0.5, 1.5], 0.1)


def test_the_empirical_bernstein_bound_holds_for_values_of_different_kinds():
    generator, failures, trials, delta = torch.Generator().manual_seed(0), 0, 400, 0.2
    rates = torch.linspace(0.0, 0.4, 50, dtype=torch.float64)
    for _ in range(trials):
        values = (torch.rand(50, generator=generator, dtype=torch.float64) < rates).double()
        failures += empirical_bernstein_bound(values, delta).item() < rates.mean().item()
    assert failures / trials <= delta
    # averages of several errors vary little, and are known better than by their number
    values = torch.tensor([0.25, 0.375] * 2000, dtype=torch.float64)
    assert (
        empirical_bernstein_bound(values, 0.01) < monte_carlo_bound(values.mean(), 4000.0, 0.01, one_sided=True) - 0.01
    )
