"""pacgen() end to end: what it says, what it leaves as it was, and the same on two processes."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy
import pytest
import tiny
import torch
from launch import on_two_processes
from torch import Tensor, nn

from hf_pacgen import PACGenResult, ScoreConfig, hessian_diagonal, pacgen, pacgen_score


def everything(model: nn.Module) -> list[Any]:
    weights = [p.detach().clone() for p in model.parameters()]
    buffers = [b.clone() for b in model.buffers()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [m.training for m in model.modules()] + [p.requires_grad for p in model.parameters()]
    return [weights, buffers, grads, modes, torch.get_rng_state(), random.getstate(), numpy.random.get_state()]


def unchanged(before: list[Any], after: list[Any]) -> bool:
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, (Tensor, numpy.ndarray)):
            return bool((a == b).all())
        if isinstance(a, (list, tuple)):
            return all(same(x, y) for x, y in zip(a, b, strict=True))
        return a == b

    return same(before, after)


@pytest.mark.parametrize("estimator", ["blend", "hutchinson", "gauss_newton", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_left_as_it_was(estimator: str, dtype: torch.dtype) -> None:
    model, batch = tiny.make("bert", dtype=dtype).train(), tiny.examples("bert", 6, dtype=dtype)
    model.bert.encoder.layer[0].eval()  # type: ignore[union-attr,index]
    model(**batch).loss.backward()
    before = everything(model)
    pacgen(model, tiny.split(batch, 4, 2), config=ScoreConfig(estimator=estimator), progress=False)
    assert unchanged(before, everything(model))


@pytest.mark.parametrize("fail_at", [3, 6, 9, 14, 17])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_model_is_left_as_it_was_after_an_exception(fail_at: int, error: type[BaseException]) -> None:
    model, parts = tiny.make("bert", dtype=torch.float32).train(), tiny.split(tiny.examples("bert", 6), 2, 2, 2)
    calls = 0

    def fail(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise error("stop here")

    handle = model.register_forward_pre_hook(fail)
    before = everything(model)
    with pytest.raises(error, match="stop here"):
        pacgen(model, parts, progress=False)
    handle.remove()
    assert calls == fail_at and unchanged(before, everything(model))


@pytest.mark.parametrize("name", list(tiny.MODELS))
def test_the_score_is_that_of_its_parts(name: str) -> None:
    model, parts = tiny.make(name), tiny.split(tiny.examples(name, 6), 4, 2)
    config = ScoreConfig(estimator="exact", lipschitz_directions=0, rho=0.4, gamma=0.2, epsilon=0.5, eta=300.0)
    result = pacgen(model, parts, config=config, progress=False)
    weights = {n: p.detach() for n, p in model.named_parameters()}
    diagonal = hessian_diagonal(model, parts, config=config, progress=False)
    terms = pacgen_score(weights, diagonal.values, 0.4, gamma=0.2, epsilon=0.5, eta=300.0)
    assert result.score == pytest.approx(terms.score, rel=1e-9)
    assert result.kl_complexity == pytest.approx(terms.kl_complexity, rel=1e-9)
    assert result.num_parameters == terms.num_parameters and result.hessian_lipschitz == 0.4
    assert result.loss == pytest.approx(diagonal.loss) and result.hessian_trace == pytest.approx(diagonal.trace)
    for key, whole in (("score", result.score), ("kl_complexity", result.kl_complexity)):
        assert sum(part[key] for part in result.by_module.values()) == pytest.approx(whole, rel=1e-9)
    assert sum(part["hessian_trace"] for part in result.by_module.values()) == pytest.approx(result.hessian_trace)
    assert sum(part["num_parameters"] for part in result.by_module.values()) == result.num_parameters
    assert PACGenResult.from_dict(result.to_dict()) == result


def test_the_result_says_what_was_chosen() -> None:
    model, parts = tiny.make("bert", dtype=torch.float32), tiny.split(tiny.examples("bert", 6), 4, 2)
    assert pacgen(model, parts, progress=False).hvp_method == "finite_difference"
    assert pacgen(model.bfloat16(), parts, progress=False).hvp_method == "reverse_over_reverse"
    quiet = ScoreConfig(estimator="gauss_newton", lipschitz_directions=0, passes=1)
    result = pacgen(model, parts, config=quiet, progress=False)
    assert result.hvp_method is None and result.num_hvps == 0 and result.num_gradients == 2


def test_float16_on_a_cpu_gives_nearly_the_numbers_of_float32() -> None:
    parts = tiny.split(tiny.examples("bert", 6), 3, 3)
    whole, half = (pacgen(tiny.make("bert", dtype=d), parts, progress=False) for d in (torch.float32, torch.float16))
    assert half.loss == pytest.approx(whole.loss, rel=1e-3)
    assert half.hessian_trace == pytest.approx(whole.hessian_trace, rel=0.01)
    assert half.score == pytest.approx(whole.score, rel=1e-3)


def test_status_sentences() -> None:
    model, parts = tiny.make("bert"), tiny.split(tiny.examples("bert", 6), 2, 2, 2)

    def status(data: Any = parts, **settings: Any) -> str:
        return "\n".join(pacgen(model, data, config=ScoreConfig(**settings), progress=False).status)

    assert "Ψ is saturated: it is a function of the weights' size alone. Read K(η)" in status(
        lipschitz_directions=0, eta=1e9
    )
    both = status(lipschitz_directions=0, eta=1e-6)
    assert "K(η) at η = 1e-06 is saturated" in both and "Read K(η)" not in both and "Read kl_curvature" in both
    assert "The Hessian's trace is noisy" in status(estimator="hutchinson", passes=1)
    assert "ρ did not converge in 1 iterations" in status(lipschitz_iterations=1)
    assert "ρ rules K(η)" in status(eta=1e6)
    once = status([tiny.examples("bert", 3)], passes=1)
    assert "standard error of the trace is unknown" in once
    clean = pacgen(
        model, parts * 4, config=ScoreConfig(estimator="exact", lipschitz_directions=0, epsilon=10.0, eta=1e6)
    )
    assert clean.status == ()


@pytest.mark.parametrize("eta", [1e-6, 1.0, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("rho", [0.0, 1.0])
def test_at_most_one_sentence_says_which_number_to_read(eta: float, rho: float) -> None:
    model, parts = tiny.make("bert"), tiny.split(tiny.examples("bert", 6), 2, 2, 2)
    config = ScoreConfig(lipschitz_directions=0, rho=rho, eta=eta)
    told = [s for s in pacgen(model, parts, config=config, progress=False).status if "Read " in s]
    assert len({s.partition("Read ")[2].split(",")[0].split(" ")[0] for s in told}) <= 1, told


# ------------------------------------------------------------------------------------------ two processes

UNEVEN = [tiny.split(tiny.examples("tokens", 11, ignore=0.6), 4, 4, 3), [tiny.examples("tokens", 3, ignore=0.2)]]


def _two(case: int, expected: dict[str, Any]) -> None:
    from accelerate import Accelerator

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = tiny.bert_tokens().double().eval()
    result = pacgen(model, UNEVEN[case], accelerator=Accelerator(cpu=True), progress=False).to_dict()
    for key in ("score", "kl_complexity", "loss", "hessian_trace", "hessian_lipschitz", "num_units", "num_examples"):
        if abs(result[key] - expected[key]) > 1e-5 * abs(expected[key]):
            raise ValueError(f"{key}: {result[key]} on two processes, {expected[key]} on one")


@pytest.mark.parametrize("case", [0, 1], ids=["uneven", "a rank without a batch"])
def test_two_processes_give_the_numbers_of_one(case: int) -> None:
    torch.manual_seed(0)
    expected = pacgen(tiny.bert_tokens().double().eval(), UNEVEN[case], progress=False).to_dict()
    on_two_processes(_two, case, expected)


def _one_fails() -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    torch.set_num_threads(1)
    told: str | None = "nothing was raised"
    parts = tiny.split(tiny.examples("bert", 4), 2, 2)
    del parts[1]["labels"]  # batch 1 is rank 1's
    model = tiny.make("bert")
    try:
        pacgen(model, parts, accelerator=accelerator, progress=False)
    except ValueError as error:
        told = None if accelerator.process_index == 1 and "Batch 1 gave no loss" in str(error) else repr(error)
    except RuntimeError as error:
        told = None if accelerator.process_index == 0 and "Process 1 of 2 failed" in str(error) else repr(error)
    accelerator.wait_for_everyone()  # a process that ends too soon takes the other's connection with it
    if told is not None:
        raise SystemExit(f"process {accelerator.process_index}: {told}")


def test_when_one_process_fails_all_stop() -> None:
    on_two_processes(_one_fails)


def _slow(share: Any) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, parts = tiny.make("bert"), tiny.split(tiny.examples("bert", 200), *[1] * 200)
    del parts[1]["labels"]
    model.register_forward_pre_hook(lambda *args: time.sleep(0.1))
    began = time.monotonic()
    try:
        pacgen(model, parts, config=ScoreConfig(lipschitz_directions=0), accelerator=accelerator, progress=False)
    except (ValueError, RuntimeError) as error:
        if "Batch 1 gave no loss" not in str(error):
            raise
    took = time.monotonic() - began
    good = pacgen(tiny.make("bert"), parts[2:4], accelerator=accelerator, progress=False)  # and can go on
    accelerator.wait_for_everyone()
    if took > 20 or good.num_examples != 2:
        raise RuntimeError(f"process {accelerator.process_index} stopped after {took:.0f} s")


def test_when_one_process_fails_a_slow_one_stops_in_the_middle() -> None:
    on_two_processes(_slow, None)


def _differing(what: str, message: str) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    other = accelerator.process_index == 1
    model, parts = tiny.make("bert"), tiny.split(tiny.examples("bert", 6), 2, 2, 2)
    model.register_buffer("running", torch.tensor(float(other)))  # as batch norm under DistributedDataParallel
    if other and what == "weights":
        with torch.no_grad():
            model.classifier.bias.add_(0.1)  # type: ignore[union-attr,operator]
    try:
        pacgen(
            model,
            parts[:-1] if other and what == "length" else parts,
            config=ScoreConfig(seed=int(other and what == "settings")),
            accelerator=accelerator,
            progress=False,
        )
    except ValueError as error:
        if message not in str(error):
            raise
    else:
        raise RuntimeError("nothing was raised")
    accelerator.wait_for_everyone()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("weights", "Process 1 has another model, data or settings than process 0. These differ: the values of"),
        ("length", "the length of the data (3 in process 0 and 2 in process 1)"),
        ("settings", "the setting seed (0 in process 0 and 1 in process 1)"),
    ],
)
def test_processes_with_different_work_are_refused(what: str, message: str) -> None:
    on_two_processes(_differing, what, message)
