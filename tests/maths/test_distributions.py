"""Moments, entropies and KLs against numerical integration; samples against distribution functions."""

import math

import pytest
import torch
from scipy import integrate, stats

from hf_pacgen.maths import truncation
from hf_pacgen.maths.distributions import (
    NoiseDistribution,
    Normal,
    TruncatedNormal,
    Uniform,
    make_noise,
    normal_prior_kl,
)

F64 = torch.float64


def t(*values):
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=F64)


def normal_log_density(x, scale):
    return -0.5 * (x / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


def log_density(noise):
    """log q(u) and the half-width that holds all of q, the normalization found by integration."""
    if isinstance(noise, Uniform):
        sigma = noise.half_width.item()
        return lambda u: -math.log(2 * sigma), sigma
    scale = noise.scale.item()
    reach = min(12 * scale, noise.half_width.item() if isinstance(noise, TruncatedNormal) else math.inf)
    mass = integrate.quad(lambda v: math.exp(-0.5 * (v * reach / scale) ** 2), -1, 1, epsabs=0, epsrel=1e-13)[0] * reach
    return lambda u: -0.5 * (u / scale) ** 2 - math.log(mass), reach


def mean(noise, function):
    """E function(u, log q(u)) by adaptive quadrature."""
    log_q, reach = log_density(noise)

    def integrand(v):
        return math.exp(log_q(v * reach)) * reach * function(v * reach, log_q(v * reach))

    return integrate.quad(integrand, -1, 1, epsabs=0, epsrel=1e-12, points=[-0.1, 0.0, 0.1], limit=200)[0]


NOISES = [
    Uniform(t(0.3)),
    Uniform(t(1e-8)),
    Normal(t(0.7)),
    Normal(t(1e-6)),
    *(TruncatedNormal(t(s), t(1.0)) for s in (1e6, 50.0, 1.0001, 1.0, 0.9999, 0.6, 0.2, 0.05, 1e-3)),
    TruncatedNormal(t(1e-9), t(3e-9)),
    TruncatedNormal(t(2e5), t(1e5)),
]


@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_second_moment_and_entropy_against_integration(noise):
    assert noise.second_moment().item() == pytest.approx(mean(noise, lambda u, log_q: u * u), rel=1e-10, abs=0)
    assert noise.entropy().item() == pytest.approx(mean(noise, lambda u, log_q: -log_q), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("noise", NOISES, ids=str)
@pytest.mark.parametrize(("offset", "tau"), [(0.0, 1.0), (-0.4, 0.05), (1e4, 2.0), (1.0, 1e5)])
def test_kl_to_normal_against_integration(noise, offset, tau):
    exact = mean(noise, lambda u, log_q: log_q - normal_log_density(offset + u, tau))
    kl = noise.kl_to_normal(t(3.0 + offset), 3.0, tau)
    assert kl.item() == pytest.approx(exact, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("sigma", "offset", "tau"), [(0.2, 0.0, 0.2), (0.2, -0.3, 0.5), (1e-9, 4.0, 5.0)])
def test_kl_to_uniform_against_integration(sigma, offset, tau):
    exact = mean(Uniform(t(sigma)), lambda u, log_q: log_q + math.log(2 * tau))
    assert Uniform(t(sigma)).kl_to_uniform(t(offset), 0.0, tau).item() == pytest.approx(exact, rel=1e-10, abs=1e-12)


def test_kl_to_uniform_is_infinite_outside_the_prior():
    kl = Uniform(t(0.5)).kl_to_uniform(t(0.0, 0.5, 0.500001, -3.0), 0.0, 1.0)
    assert kl.tolist() == pytest.approx([math.log(2)] * 2 + [math.inf] * 2)
    weights, box = t(-2.0, 0.0, 0.7), t(0.1, 0.1, 0.1)
    assert Uniform(box).kl_to_uniform(weights, 0.0, weights.abs() + box).isfinite().all()  # the prior of Ψ


def test_truncated_normal_uses_its_closed_forms():
    """Which are tested by themselves, to the last digit, in test_truncation."""
    scale, box = t(0.1, 1.0, 30.0), t(0.4, 0.7, 2.0)
    noise = TruncatedNormal(scale, box)
    assert noise.second_moment().equal(truncation.second_moment(scale, box))
    assert noise.entropy().equal(truncation.entropy(scale, box))


def test_truncated_normal_between_its_limits():
    """a → 0 is the uniform distribution, a → ∞ the normal, far beyond where the printed formulas give NaN."""
    flat, peaked = TruncatedNormal(t(1e300), t(0.3)), TruncatedNormal(t(0.3), t(1e300))
    for limit, noise in [(Uniform(t(0.3)), flat), (Normal(t(0.3)), peaked)]:
        torch.testing.assert_close(noise.second_moment(), limit.second_moment(), rtol=1e-15, atol=0)
        torch.testing.assert_close(noise.entropy(), limit.entropy(), rtol=1e-15, atol=0)
        torch.testing.assert_close(noise.kl_to_normal(9.0, 2.0, 0.5), limit.kl_to_normal(9.0, 2.0, 0.5))
    assert TruncatedNormal(t(1e-310), t(1.0)).second_moment().item() == 0.0


def test_normal_kl_closed_form():
    """log(τ/s) + (s² + (w-p)²)/(2τ²) - 1/2; 0 for equal distributions, never below."""
    s, tau, gap = t(0.1, 0.5, 2.0), t(1.0, 0.5, 0.3), t(0.0, 0.0, -7.0)
    exact = (tau / s).log() + (s**2 + gap**2) / (2 * tau**2) - 0.5
    torch.testing.assert_close(Normal(s).kl_to_normal(gap + 1, 1.0, tau), exact, rtol=1e-13, atol=1e-15)
    scales = torch.logspace(-20, 20, 500, dtype=F64)
    same = Normal(scales).kl_to_normal(5.0, 5.0, scales)
    assert (same >= 0).all() and (same < 1e-13).all()


def test_kl_keeps_a_step_that_bfloat16_would_lose():
    weights, center = torch.tensor([1.0078125], dtype=torch.bfloat16), t([1.003])
    kl = Normal(t([0.001])).kl_to_normal(weights, center, 0.001)
    assert kl.dtype == F64 and kl.item() == pytest.approx(0.5 * 4.8125**2, rel=1e-12)


def test_sums_give_the_kl_of_a_whole_grid_of_priors():
    g = torch.Generator().manual_seed(0)
    weights, scale = (torch.rand(2, 1000, generator=g, dtype=F64) + 0.01).unbind()
    noise, grid = TruncatedNormal(scale, 2 * weights), t(0.1, 1.0, 30.0)
    sums = normal_prior_kl(noise.entropy().sum(), noise.spread(weights, 0.5).sum(), grid, count=1000)
    each = torch.stack([noise.kl_to_normal(weights, 0.5, tau).sum() for tau in grid])
    torch.testing.assert_close(sums, each, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_scales_are_summed_in_float64(dtype):
    scale = torch.full((1000,), 0.1, dtype=dtype)
    for noise in (Uniform(scale), Normal(scale), TruncatedNormal(scale, 2 * scale)):
        assert noise.entropy().dtype == noise.second_moment().dtype == F64
        assert noise.sample().dtype == dtype


def test_gradients():
    s, box, w, p = (
        t(*values).requires_grad_() for values in [(0.2, 0.9, 30.0), (1.5, 1.0, 2.0), (1.0, 2.0, -3.0), (0.0, 2.5, 1.0)]
    )
    assert torch.autograd.gradcheck(lambda s, n, w, p: TruncatedNormal(s, n).kl_to_normal(w, p, 0.7), (s, box, w, p))
    assert torch.autograd.gradcheck(lambda s, w, p: Normal(s).kl_to_normal(w, p, 0.7), (s, w, p))
    assert torch.autograd.gradcheck(lambda s, w, p: Uniform(s).kl_to_normal(w, p, 0.7), (s, w, p))
    assert torch.autograd.gradcheck(lambda s: Uniform(s).kl_to_uniform(0.0, 0.0, 99.0), (s,))

    def draw(s, n):
        return TruncatedNormal(s, n).sample(torch.Generator().manual_seed(3))

    assert torch.autograd.gradcheck(draw, (s, box))


# --- samples --------------------------------------------------------------------------------------------------

SAMPLED = {
    "uniform": (Uniform(t(0.3)), stats.uniform(-0.3, 0.6)),
    "normal": (Normal(t(0.3)), stats.norm(0, 0.3)),
    "mild truncation": (TruncatedNormal(t(0.3), t(0.4)), stats.truncnorm(-4 / 3, 4 / 3, 0, 0.3)),
    "hard truncation": (TruncatedNormal(t(30.0), t(0.4)), stats.truncnorm(-4 / 300, 4 / 300, 0, 30.0)),
    "no truncation": (TruncatedNormal(t(0.3), t(1e6)), stats.norm(0, 0.3)),
    "uniform limit": (TruncatedNormal(t(1e30), t(1e-20)), stats.uniform(-1e-20, 2e-20)),
}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("case", SAMPLED)
def test_samples_follow_the_distribution(case, dtype):
    noise, exact = SAMPLED[case]
    draws = noise.sample(torch.Generator().manual_seed(0), shape=(100_000,), dtype=dtype)
    assert draws.dtype == dtype
    assert stats.kstest(draws.double().numpy(), exact.cdf).pvalue > 1e-3
    moment = noise.second_moment().item()
    spread = draws.double().square().std().item() / math.sqrt(len(draws))
    assert abs(draws.double().square().mean().item() - moment) < 4 * spread
    assert abs(draws.double().mean().item()) < 4 * math.sqrt(moment / len(draws))


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_samples_stay_inside(dtype):
    box = torch.tensor([1e-20, 0.1, 0.7, 1e4]).to(dtype)
    for noise in (Uniform(box), *(TruncatedNormal(box * k, box) for k in (1e-3, 0.5, 1.0, 1e15))):
        draws = noise.sample(torch.Generator().manual_seed(1), shape=(20_000, 4))
        assert (draws.abs() <= box).all()
        assert (draws.abs().amax(dim=0) > 0.003 * box).all()


def test_the_ends_of_the_random_grid(monkeypatch):
    """torch.rand returns 0 once in 2²⁴ float32 draws; taken for -1 it would be a jump of a = 10⁶ scales to -N."""
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.tensor([0.0, 1 - 2.0**-24]).expand(shape).clone())
    low, high = TruncatedNormal(torch.ones(2), torch.full((2,), 1e6)).sample().tolist()
    assert -6 < low == -high
    assert Uniform(torch.ones(2)).sample().tolist() == [-1 + 2.0**-24, 1 - 2.0**-24]
    box = torch.linspace(0.01, 3, 5000)[:, None].expand(5000, 2)  # rounding must not carry a draw out of the box
    assert (TruncatedNormal(torch.ones(2), box).sample().abs() <= box).all()


@pytest.mark.parametrize("noise", [Uniform(t([0.1] * 5)), Normal(t([0.1] * 5)), TruncatedNormal(t([0.1] * 5), t(0.2))])
def test_a_generator_makes_samples_repeatable_and_leaves_the_global_state_alone(noise):
    state = torch.get_rng_state()
    first, again, other = (noise.sample(torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (5,) and first.dtype == F64
    g = torch.Generator().manual_seed(0)
    assert not torch.equal(noise.sample(g), noise.sample(g))
    assert noise.sample(shape=(2, 5), dtype=torch.bfloat16, device="cpu").dtype == torch.bfloat16
    assert len(noise.sample().unique()) == 5  # without a generator, and a draw of its own for each weight


def test_samples_go_to_the_device_asked_for():
    """Drawn on the generator's device, then moved."""
    for noise in (Uniform(t([1.0] * 3)), Normal(t([1.0] * 3)), TruncatedNormal(t([1.0] * 3), t(2.0))):
        draw = noise.sample(torch.Generator().manual_seed(0), device="meta", dtype=torch.float16)
        assert (draw.device.type, draw.dtype, draw.shape) == ("meta", torch.float16, (3,))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cpu_generator_gives_a_gpu_the_same_noise():
    scale = torch.full((1000,), 0.1)
    for noise, moved in [(Uniform(scale), Uniform(scale.cuda())), (Normal(scale), Normal(scale.cuda()))]:
        ours, theirs = (one.sample(torch.Generator().manual_seed(0)) for one in (noise, moved))
        assert theirs.is_cuda and torch.equal(ours, theirs.cpu())


def test_no_noise():
    for noise in (
        Uniform(t(0.0, 0.1)),
        Normal(t(0.0, 0.1)),
        TruncatedNormal(t(0.0, 0.1), t(0.3)),
        TruncatedNormal(t(0.3), t(0.0, 0.1)),
        TruncatedNormal(t(0.0, 0.1), t(0.0, 0.1)),
    ):
        draws = noise.sample(torch.Generator().manual_seed(0))
        assert draws[0] == 0 and draws[1] != 0
        assert noise.second_moment()[0] == 0 and noise.second_moment()[1] > 0
        assert noise.entropy()[0] == -math.inf and noise.entropy()[1].isfinite()
        kl = noise.kl_to_normal(0.0, 0.0, 1.0)
        assert kl[0] == math.inf and kl[1].isfinite()
    assert Uniform(t(0.0)).kl_to_uniform(0.0, 0.0, 1.0) == math.inf


def test_make_noise():
    assert isinstance(make_noise("uniform", 0.1), Uniform)
    assert isinstance(make_noise(NoiseDistribution.NORMAL, torch.ones(2)), Normal)
    noise = make_noise("truncated_normal", 0.1, torch.ones(2))
    assert isinstance(noise, TruncatedNormal) and noise.sample().shape == (2,)
    assert make_noise("normal", 1).sample().dtype == F64
    assert Normal(torch.tensor([1, 2])).sample(torch.Generator().manual_seed(0)).frac().all()  # whole scales


# --- refusals -------------------------------------------------------------------------------------------------


def test_refusals():
    for bad in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"half_width must be finite and >= 0; got (-0.1|nan|inf)"):
            Uniform(t(0.1, bad))
        with pytest.raises(ValueError, match="scale must be finite and >= 0; got"):
            Normal(t(bad))
        with pytest.raises(ValueError, match="half_width must be finite and >= 0; got"):
            TruncatedNormal(t(1.0), t(bad))
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="prior_scale must be finite and > 0; got"):
            Normal(t(1.0)).kl_to_normal(0.0, 0.0, bad)
        with pytest.raises(ValueError, match="prior_half_width must be finite and > 0; got"):
            Uniform(t(1.0)).kl_to_uniform(0.0, 0.0, bad)
    with pytest.raises(ValueError, match=r"The shapes of a TruncatedNormal must broadcast; got \{'scale': \(2,\)"):
        TruncatedNormal(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match=r"shape must end in \(3,\), the shape of the scales; got \(3, 1\)"):
        Uniform(torch.ones(3)).sample(shape=(3, 1))
    with pytest.raises(
        ValueError, match="distribution must be one of 'uniform', 'truncated_normal', 'normal'; got 'g'"
    ):
        make_noise("g", 0.1)
    with pytest.raises(ValueError, match="truncated_normal needs half_width"):
        make_noise("truncated_normal", 0.1)
    with pytest.raises(ValueError, match="scale must be finite and >= 0; got -1"):
        make_noise("normal", -1)
