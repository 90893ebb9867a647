"""The box of an adapter's B is that of the weight it is added to."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import tiny
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from hf_pacgen import ScoreConfig, pacgen
from hf_pacgen.model.adapters import merged_sizes


def adapted(targets: list[str], **settings: Any) -> Any:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=8, n_embd=48, n_layer=1, n_head=2))
    config = LoraConfig(r=4, lora_alpha=10, target_modules=targets, fan_in_fan_out=True, **settings)
    return get_peft_model(model, config)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("rank_stabilized", [False, True])
@pytest.mark.parametrize("targets", [["c_attn"], ["mlp.c_fc", "mlp.c_proj"], ["wte"]])
def test_noise_of_that_size_moves_the_merged_weight_by_its_size(targets: list[str], rank_stabilized: bool) -> None:
    model = adapted(targets, use_rslora=rank_stabilized)
    sizes = merged_sizes(model, trained(model))
    assert sorted(sizes) == sorted(name for name in trained(model) if "lora_B" in name or "embedding_A" in name)
    layers = {name: m for name, m in model.named_modules() if hasattr(m, "get_delta_weight")}
    for name, size in sizes.items():
        assert size is not None
        layer = layers[name.split(".lora_")[0]]
        before = layer.get_base_layer().weight.detach().clone()
        ups = model.get_parameter(name)
        with torch.no_grad():
            ups.add_(size * (2 * torch.rand_like(ups) - 1))
        moved = layer.get_delta_weight("default")
        assert moved.shape == before.shape
        ratio = moved.square().mean().sqrt() / before.square().mean().sqrt()
        assert ratio.item() == pytest.approx(1 / math.sqrt(3), rel=0.2)


def test_other_parameters_have_no_reach() -> None:
    plain = tiny.make("gpt2")
    assert merged_sizes(plain, dict(plain.named_parameters())) == {}
    scaled = get_peft_model(copy.deepcopy(plain), IA3Config(target_modules=["c_attn"], feedforward_modules=[]))
    assert merged_sizes(scaled, trained(scaled)) == {}
    adapter = adapted(["c_attn"])
    assert merged_sizes(adapter, {}) == {}
    with torch.no_grad():  # an A of zeros moves nothing, however large B is
        for name, p in trained(adapter).items():
            if "lora_A" in name:
                p.zero_()
    assert merged_sizes(adapter, trained(adapter)) == {}


def test_a_base_that_cannot_be_read_is_said() -> None:
    model = adapted(["c_attn"])
    for layer in model.modules():
        if hasattr(layer, "get_base_layer") and hasattr(layer, "scaling"):
            base = layer.get_base_layer()
            packed = base.weight.detach().clone()
            del base.weight  # as quantized layers have it, whose weights are in integers of another name
            base.register_buffer("qweight", packed)
            base.forward = lambda x, w=packed, b=base.bias: x @ w + b
    assert set(merged_sizes(model, trained(model)).values()) == {None}
    tokens = torch.randint(0, 40, (8, 8), generator=torch.Generator().manual_seed(0))
    config = ScoreConfig(lipschitz_directions=0, rho=1.0)
    data = [{"input_ids": part, "labels": part} for part in tokens.split(4)]
    result = pacgen(model, data, config=config, progress=False)
    assert any("The weights that 1 adapter matrices are added to cannot be read" in note for note in result.notes)
    absolute = ScoreConfig(lipschitz_directions=0, rho=1.0, epsilon=0.1)
    assert not any("cannot be read" in n for n in pacgen(model, data, config=absolute, progress=False).notes)


def test_a_fresh_adapter_feels_the_loss() -> None:
    # B is 0, so a box of its own size would be empty, and K(η) one of sizes alone
    model = adapted(["c_attn", "c_fc", "c_proj"])
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.mul_(8)  # a loss that bends
    tokens = torch.randint(0, 40, (16, 8), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": part, "labels": part} for part in tokens.split(4)]
    result = pacgen(model, data, config=ScoreConfig(num_training_examples=10_000), progress=False)
    assert result.kl_excess is not None and result.kl_excess > 0
    modules = {name: part for name, part in result.by_module.items() if "lora_B" in name}
    assert all(part["kl_lipschitz"] > 0 for part in modules.values())
