"""Quantized layers give the curvature of their dequantized weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from hf_pacgen import ScoreConfig, pacgen
from hf_pacgen.model.dequantized import dequantize, dequantized, quantized_layers

bitsandbytes = pytest.importorskip("bitsandbytes")


def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_attention_heads=2, max_position_embeddings=16, **sizes))


def quantize(model: nn.Module, bits: int, compute: torch.dtype) -> nn.Module:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "proj" in name:
            sizes, weight = (module.in_features, module.out_features), module.weight.data.clone()
            new: Any
            if bits == 4:
                new = bitsandbytes.nn.Linear4bit(*sizes, bias=False, compute_dtype=compute, quant_type="nf4")
                new.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
            else:
                new = bitsandbytes.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False)
                new.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, new.to("cpu"))
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(compute)
    return model


def adapted(model: nn.Module) -> Any:
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))


def data() -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(1, 32, (8, 6), generator=torch.Generator().manual_seed(1)).split(4)
    return [{"input_ids": t, "labels": t} for t in tokens]


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_trace_is_that_of_the_dequantized_model(bits: int, compute: torch.dtype) -> None:
    model = adapted(quantize(llama(), bits, compute))
    before = [parameter.dtype for parameter in model.parameters()]
    config = ScoreConfig(estimator="hutchinson", passes=2, lipschitz_directions=0)
    found = pacgen(model, data(), config=config, progress=False)
    assert any("quantized layers were computed from their dequantized weights" in said for said in found.status)
    reference = llama().to(compute).float()
    plain = {name.replace("base_model.model.", "").replace(".base_layer", ""): m for name, m in model.named_modules()}
    for name, module in reference.named_modules():
        if isinstance(module, nn.Linear) and "proj" in name:
            module.weight.data.copy_(dequantize(plain[name]))
    reference = adapted(reference)
    expected = pacgen(reference, data(), config=config, progress=False)
    assert found.hessian_trace == pytest.approx(expected.hessian_trace, rel=0.05)
    assert found.hessian_trace != 0
    # and the model is as it was
    assert before == [parameter.dtype for parameter in model.parameters()]
    assert all("forward" not in vars(layer) for layer in quantized_layers(model))


def test_every_method_goes_through() -> None:
    model = adapted(quantize(llama(), 4, torch.float32))
    traces = []
    for method in ("reverse_over_reverse", "forward_over_reverse", "finite_difference"):
        config = ScoreConfig(estimator="hutchinson", hvp=method, lipschitz_directions=0)
        traces.append(pacgen(model, data(), config=config, progress=False).hessian_trace)
    assert traces[1] == pytest.approx(traces[0], rel=1e-4) and traces[2] == pytest.approx(traces[0], rel=2e-2)


def test_models_without_quantized_layers_are_left_alone() -> None:
    model = llama()
    with dequantized(model) as count:
        assert count == 0 and not quantized_layers(copy.deepcopy(model))
    with torch.autocast("cpu", torch.bfloat16), dequantized(adapted(quantize(model, 4, torch.float32))) as count:
        assert count == 7 and not torch.is_autocast_enabled("cpu")
