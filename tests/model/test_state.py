"""A model is left exactly as it was found: modes, gradients, buffers, random state, hooks and attention."""

from __future__ import annotations

import random
from typing import Any

import numpy
import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from hf_pacgen.model.state import (
    base_model,
    evaluation_mode,
    preserved,
    seed_everything,
    transformable,
    twice_differentiable,
    unwrap,
    uses_checkpointing,
    uses_reentrant_checkpointing,
    without_generation_caches,
)


class Counting(nn.Module):
    """A batch norm, a buffer of its own, one that is absent, and a frozen weight."""

    counter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(3), nn.Linear(3, 2)
        self.linear.bias.requires_grad_(False)
        self.register_buffer("counter", torch.zeros(2))
        self.register_buffer("absent", None)

    def forward(self, x: Tensor) -> Tensor:
        self.counter += 1
        return self.linear(self.norm(x))


def trained() -> Counting:
    model = Counting()
    model.norm.eval()  # some modules in one mode, some in the other
    model(torch.randn(4, 3)).sum().backward()
    return model


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        **{f"mode of {n}": m.training for n, m in model.named_modules()},
        **{f"gradient of {n}": None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()},
        **{f"buffer {n}": b.clone() for n, b in model.named_buffers()},
    }


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return found.keys() == expected.keys() and all(
        v.equal(expected[n]) if isinstance(v, Tensor) else v is expected[n] for n, v in found.items()
    )


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_what_a_measure_changes_comes_back(error: type[BaseException] | None) -> None:
    model = trained()
    before, gradient, buffer = snapshot(model), model.linear.weight.grad, model.counter
    state = random.getstate(), numpy.random.get_state(), torch.get_rng_state()

    def work() -> None:
        with preserved(model):
            assert all(p.grad is None for p in model.parameters())
            model.train()
            model(torch.randn(8, 3)).square().sum().backward()
            model._buffers["counter"] = torch.ones(5)  # replaced, not written to
            model.absent = torch.ones(1)
            seed_everything(99)
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(error):
            work()
    assert same(snapshot(model), before)
    assert model.linear.weight.grad is gradient and model.counter is buffer and model.absent is None
    assert random.getstate() == state[0] and torch.get_rng_state().equal(state[2])
    assert all(numpy.array_equal(a, b) for a, b in zip(numpy.random.get_state(), state[1], strict=True))


def test_a_buffer_on_the_meta_device_is_left_alone() -> None:
    model = Counting()
    model._buffers["counter"] = torch.zeros(2, device="meta")
    with preserved(model):
        pass
    assert model.counter.is_meta


def test_weights_are_not_copied_here() -> None:
    model = Counting()
    with preserved(model), torch.no_grad():
        model.linear.weight.fill_(7)
    assert bool((model.linear.weight == 7).all())


def test_hooks_on_accumulated_gradients_sleep() -> None:
    model, heard = nn.Linear(1, 1), list[str]()
    # an optimizer that steps in the backward pass, say
    first = model.weight.register_post_accumulate_grad_hook(lambda parameter: heard.append("first"))
    model.weight.register_post_accumulate_grad_hook(lambda parameter: heard.append("second"))
    with preserved(model):
        model(torch.ones(1, 1)).sum().backward()
    assert heard == []
    model(torch.ones(1, 1)).sum().backward()
    assert heard == ["first", "second"]
    first.remove()
    model(torch.ones(1, 1)).sum().backward()
    assert heard[2:] == ["second"]


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 7])
def test_all_three_generators_are_seeded(seed: int) -> None:
    with preserved(nn.Linear(1, 1)):
        drawn = []
        for _ in range(2):
            seed_everything(seed)
            drawn.append((random.random(), numpy.random.rand(), torch.rand(()).item()))
        assert drawn[0] == drawn[1]
        assert drawn[0][0] == random.Random(seed).random()
        assert drawn[0][1] == numpy.random.RandomState(seed % 2**32).rand()  # which takes no larger seeds
        assert drawn[0][2] == torch.rand((), generator=torch.Generator().manual_seed(seed)).item()


def test_wrappers_are_taken_off_in_any_order() -> None:
    model = nn.Linear(1, 1)
    compiled: Any = torch.compile(model)
    assert unwrap(model) is unwrap(compiled) is unwrap(nn.DataParallel(model)) is model
    assert unwrap(nn.DataParallel(compiled)) is unwrap(torch.compile(nn.DataParallel(model))) is model  # type: ignore[arg-type]


def test_the_model_inside_an_adapter() -> None:
    inner = tiny.make("bert")
    adapted = get_peft_model(inner, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    assert base_model(adapted) is inner and base_model(inner) is inner


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_in_evaluation_only_what_checkpoints_keeps_its_flag(name: str, reentrant: bool) -> None:
    model: Any = tiny.make(name)
    assert not uses_checkpointing(model) and not uses_reentrant_checkpointing(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert uses_checkpointing(model) and uses_reentrant_checkpointing(model) == reentrant
    model.train()
    evaluation_mode(model, checkpointing=True)
    flags = {module: module.training for module in model.modules()}
    assert {m for m, on in flags.items() if on} == {m for m in flags if getattr(m, "gradient_checkpointing", False)}
    assert not any(m.training for m in model.modules() if isinstance(m, nn.Dropout)) and any(flags.values())
    evaluation_mode(model, checkpointing=False)
    assert not any(module.training for module in model.modules())


def second_derivative(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    weight = next(p for n, p in model.named_parameters() if "query" in n and n.endswith("weight"))
    (slope,) = torch.autograd.grad(model(**batch).loss, weight, create_graph=True)
    return torch.autograd.grad(slope.square().sum(), weight)[0]


def test_attention_can_be_differentiated_twice_and_is_put_back() -> None:
    """Against eager attention, which always can."""
    batch = tiny.examples("bert", 3)
    model: Any = tiny.make("bert")
    expected = second_derivative(tiny.make("bert", "eager"), batch)
    model.config._attn_implementation = "sdpa"
    with twice_differentiable(model):
        torch.testing.assert_close(second_derivative(model, batch), expected, rtol=1e-8, atol=1e-12)
    model.config._attn_implementation = "flash_attention_2"  # not installed: it could not even run
    with pytest.raises(ZeroDivisionError), twice_differentiable(model):
        assert model.config._attn_implementation == "sdpa"
        torch.testing.assert_close(second_derivative(model, batch), expected, rtol=1e-8, atol=1e-12)
        raise ZeroDivisionError
    assert model.config._attn_implementation == "flash_attention_2"
    eager: Any = tiny.make("bert", "eager")
    with twice_differentiable(eager):
        assert eager.config._attn_implementation == "eager"


def test_hooks_that_torch_func_does_not_allow_go_and_come_back_in_their_order() -> None:
    layer, called = nn.Linear(2, 2), list[str]()

    def named(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            called.append(name)

        hook.__name__ = name
        return hook

    for name in ("first", "make_inputs_require_grads", "second", "make_inputs_require_grad"):
        layer.register_forward_hook(named(name))
    before = list(layer._forward_hooks.items())
    with pytest.raises(ZeroDivisionError), transformable(nn.Sequential(layer)):
        layer(torch.zeros(1, 2))
        assert called == ["first", "second"]
        raise ZeroDivisionError
    assert list(layer._forward_hooks.items()) == before


def test_a_checkpointed_model_is_transformable() -> None:
    model: Any = tiny.make("bert")
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    batch, named = tiny.examples("bert", 2), {n: p.detach() for n, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, weights, kwargs=batch).loss

    with pytest.raises(RuntimeError, match=r"requires_grad_"):
        torch.func.grad(loss)(named)
    with transformable(model):
        assert torch.func.grad(loss)(named)["classifier.weight"].isfinite().all()


def test_generation_caches_are_off_while_inside() -> None:
    model: Any = tiny.llama()
    other = nn.Linear(2, 2)
    assert model.config.use_cache is True
    with pytest.raises(KeyError), without_generation_caches(model), without_generation_caches(other):
        assert model.config.use_cache is False
        raise KeyError
    assert model.config.use_cache is True
