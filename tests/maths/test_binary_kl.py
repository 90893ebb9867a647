"""kl and its inverses against 50-digit arithmetic."""

import math

import mpmath
import pytest
import torch

from hf_pacgen.maths.binary_kl import binary_kl, kl_inverse_lower, kl_inverse_upper

EPS = torch.finfo(torch.float64).eps
FREQUENCIES = [0.0, 1e-12, 1e-6, 1e-3, 0.1, 0.5, 0.75, 1 - 1e-6, 1.0]
BUDGETS = [1e-16, 1e-12, 1e-8, 1e-3, 0.1, 1.0, 20.0]


def exact_kl(q, p):
    """kl(q‖p) with 50 digits, of floats taken literally."""
    with mpmath.workdps(50):
        q, p = mpmath.mpf(q), mpmath.mpf(p)
        if p <= 0 or p >= 1:
            return mpmath.mpf(0) if q == p else mpmath.inf
        heads = q * mpmath.log(q / p) if q > 0 else 0
        tails = (1 - q) * (mpmath.log1p(-q) - mpmath.log1p(-p)) if q < 1 else 0
        return heads + tails


@pytest.mark.parametrize("q", FREQUENCIES)
@pytest.mark.parametrize("p", [1e-200, 1e-12, 0.1, 0.1 + 1e-9, 0.5, 0.5 + 1e-15, 1 - 1e-9])
def test_kl_has_all_its_digits(q, p):
    exact = float(exact_kl(q, p))
    assert binary_kl(q, p).item() == pytest.approx(exact, rel=1e-12, abs=EPS * abs(p - q))


def test_kl_at_the_ends():
    kl = binary_kl(torch.tensor([0.0, 1.0, 0.0, 1.0, 0.5, 0.5]), torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 1.0]))
    assert kl.tolist() == [0.0, 0.0] + [math.inf] * 4


@pytest.mark.parametrize("q", FREQUENCIES)
@pytest.mark.parametrize("budget", BUDGETS)
def test_inverses_bracket_the_exact_root(q, budget):
    """kl - c changes its sign within a few units in the last place of the answer."""
    upper, lower = kl_inverse_upper(q, budget).item(), kl_inverse_lower(q, budget).item()
    assert q <= upper <= 1 and 0 <= lower <= q
    with mpmath.workdps(50):
        step = 4 * mpmath.mpf(EPS)
        assert q == 1 or exact_kl(q, mpmath.mpf(upper) * (1 + step)) >= budget
        assert q == 1 or upper == q or exact_kl(q, max(mpmath.mpf(q), mpmath.mpf(upper) * (1 - step))) <= budget
        assert q == 0 or exact_kl(q, mpmath.mpf(lower) - q * step) >= budget
        assert q == 0 or lower == q or exact_kl(q, min(mpmath.mpf(q), mpmath.mpf(lower) + q * step)) <= budget


@pytest.mark.parametrize(("q", "budget"), [(0.02, 0.01), (0.3, 1e-9), (0.9, 0.5), (1e-9, 1e-9)])
def test_inverses_equal_a_root_found_with_50_digits(q, budget):
    reach = 1.01 * math.sqrt(budget / 2)  # Pinsker
    with mpmath.workdps(50):
        above, below = (
            mpmath.findroot(lambda p: exact_kl(q, p) - budget, bracket, solver="anderson", tol=1e-60)
            for bracket in [(q, min(1 - 1e-12, q + reach)), (max(1e-60, q - reach), q)]
        )
    assert kl_inverse_upper(q, budget).item() == pytest.approx(float(above), rel=4 * EPS, abs=0)
    assert kl_inverse_lower(q, budget).item() == pytest.approx(float(below), rel=1e-9, abs=2 * EPS * q)


def test_inverses_are_exact_at_the_ends():
    budget = torch.tensor([0.0, 1e-12, 0.7, 30.0, math.inf], dtype=torch.float64)
    assert torch.equal(kl_inverse_upper(0.0, budget), -torch.expm1(-budget))
    assert torch.equal(kl_inverse_lower(1.0, budget), torch.exp(-budget))
    assert kl_inverse_upper(1.0, budget).tolist() == [1.0] * 5
    assert kl_inverse_lower(0.0, budget).tolist() == [0.0] * 5
    q = torch.rand(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kl_inverse_upper(q, 0.0), q) and torch.equal(kl_inverse_lower(q, 0.0), q)
    assert (kl_inverse_upper(q, math.inf) == 1).all() and (kl_inverse_lower(q, math.inf) == 0).all()
    assert kl_inverse_upper(1e-310, 0.5).item() == -math.expm1(-0.5)


def test_stable_for_a_thousand_million_examples():
    n, q = 1e9, torch.tensor([0.01, 0.3, 0.5], dtype=torch.float64)
    budget = 5.0 / n
    normal = (2 * q * (1 - q) * budget).sqrt()  # kl = d²/(2q(1-q)) to first order
    torch.testing.assert_close(kl_inverse_upper(q, budget) - q, normal, rtol=1e-2, atol=0)
    torch.testing.assert_close(q - kl_inverse_lower(q, budget), normal, rtol=1e-2, atol=0)
    budgets = torch.linspace(1, 10, 50, dtype=torch.float64) / n
    assert (kl_inverse_upper(0.3, budgets).diff() > 0).all() and (kl_inverse_lower(0.3, budgets).diff() < 0).all()


def test_the_two_directions_mirror_each_other():
    q = torch.linspace(0, 1, 33, dtype=torch.float64)[:, None]
    budget = torch.logspace(-6, 1, 8, dtype=torch.float64)
    torch.testing.assert_close(kl_inverse_lower(q, budget), 1 - kl_inverse_upper(1 - q, budget), rtol=0, atol=4 * EPS)
    assert kl_inverse_upper(q, budget).shape == (33, 8)
    assert kl_inverse_upper(torch.tensor(0.25), 1).dtype == torch.float64


@pytest.mark.parametrize("inverse", [kl_inverse_upper, kl_inverse_lower])
def test_gradients(inverse):
    q = torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64, requires_grad=True)
    budget = torch.tensor([0.3, 0.01, 0.02], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(inverse, (q, budget))
    assert torch.equal(inverse(q, budget), inverse(q.detach(), budget.detach()))
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    inverse(ends, 0.1).sum().backward()
    assert ends.grad is not None and ends.grad.isfinite().all()


@pytest.mark.parametrize("function", [binary_kl, kl_inverse_upper, kl_inverse_lower])
@pytest.mark.parametrize("bad", [-0.1, 1.5, math.nan, math.inf])
def test_refuses_what_is_no_frequency(function, bad):
    with pytest.raises(ValueError, match=r"q must be in \[0, 1\]; got"):
        function(torch.tensor([0.5, bad]), 0.5)


def test_refuses_bad_second_arguments():
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\]; got -1"):
        binary_kl(0.5, -1.0)
    with pytest.raises(ValueError, match=r"budget must be in \[0, inf\]; got nan"):
        kl_inverse_upper(0.5, math.nan)
    with pytest.raises(ValueError, match=r"q must be .* Clip and rescale the loss"):
        kl_inverse_lower(2.0, 0.1)
