"""What can be a prior, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import saved_models
import torch
from certificates import QUICK, Head, batches, certified, trained
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification


def test_initial_weights_are_a_prior():
    torch.manual_seed(0)
    features = torch.randn(400, 5)
    labels = (features[:, 0] > 0).long()
    model = Head()
    initial = {name: p.detach().clone() for name, p in model.named_parameters()}
    reference = copy.deepcopy(model)
    trained(model, features, labels, steps=5)
    data = batches(features, labels)
    by_name, by_model = certified(model, data, prior=initial), certified(model, data, prior=reference)
    assert by_name.prior == "initial weights" and by_name.kl == by_model.kl
    far = {name: p + 5 for name, p in initial.items()}
    assert certified(model, data, prior=far).kl > by_name.kl


def wrong_priors(model: Head) -> dict[str, tuple[Any, type[Exception], str]]:
    weights = {name: p.detach().clone() + 1 for name, p in model.named_parameters()}
    eights: Any = {name: (10 * p).to(torch.int8) for name, p in weights.items()}
    rounded = {name: p.detach().bfloat16() for name, p in model.named_parameters()}
    nan = {**weights, "linear.bias": torch.tensor([0.0, math.nan])}
    return {
        "word": (
            "initial",
            ValueError,
            "prior 'initial' is neither 'zero' nor a folder.*the initial weights themselves",
        ),
        "kind": (3, TypeError, "prior must be 'zero'.*got int"),
        "itself": (model, ValueError, "The prior is the trained model itself"),
        "copy": (copy.deepcopy(model), ValueError, "equals the trained weights, so it depends on the data"),
        "shared": (model.state_dict(), ValueError, "'linear.weight' shares its memory with the trained model"),
        "names": ({"other": torch.ones(2)}, ValueError, "lacks weights that are to be certified: 'linear.weight'"),
        "more names": ({**weights, "x": torch.ones(1)}, ValueError, "has weights that the model lacks: 'x'"),
        "shape": (Head(4), ValueError, r"'linear.weight' must have shape \(2, 5\), like the model's; got \(2, 4\)"),
        "nan": (nan, ValueError, "'linear.bias' contains NaN or infinity"),
        "int8": (
            eights,
            ValueError,
            "'linear.weight' has the type int8: expected floating-point weights of at least 16",
        ),
        "rounded": (rounded, ValueError, "equals the trained weights.*no more than the rounding to 16 bits"),
        "empty": ({}, ValueError, "A prior by name must hold tensors; it is empty"),
    }


@pytest.mark.parametrize("case", list(wrong_priors(Head())))
def test_wrong_priors_are_refused(solved, case):
    prior, error, match = wrong_priors(solved[0])[case]
    with pytest.raises(error, match=match):
        certified(*solved, prior=prior)


def test_what_is_not_certified_must_be_as_the_prior_has_it(solved):
    model, data = solved
    initial = {"linear.weight": torch.zeros(2, 5), "linear.bias": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"The weights 'linear.bias' are not certified, and differ from the prior's"):
        certified(model, data, dataclasses.replace(QUICK, parameters=["*.weight"]), prior=initial)
    initial["linear.bias"] = model.linear.bias.detach().clone()
    result = certified(model, data, dataclasses.replace(QUICK, parameters=["*.weight"]), prior=initial)
    assert result.num_parameters == 10 and result.notes == ()


def test_folders_as_priors(tmp_path, solved):
    saved_models.bert(tmp_path / "base", head=False)
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))
    tokens = torch.randint(4, 16, (40, 6))
    data = [{"input_ids": tokens[i : i + 4], "labels": tokens[i : i + 4, 0] % 2} for i in range(0, 40, 4)]
    result = certified(model, data, prior=tmp_path / "base")
    assert result.prior == "pretrained weights of base"
    assert any("lacks the certified weights 'classifier.weight', 'classifier.bias'" in note for note in result.notes)
    assert result.kl < certified(model, data).kl  # 0 is further away
    with pytest.raises(ValueError, match=r"has none of the model's weights|has no weights"):
        certified(*solved, prior=tmp_path / "base")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no weights: expected model\.safetensors or pytorch_model.bin"):
        certified(*solved, prior=tmp_path / "empty")
    torch.save({"linear.weight": torch.zeros(2, 5), "linear.bias": torch.ones(2)}, tmp_path / "empty/pytorch_model.bin")
    assert certified(*solved, prior=tmp_path / "empty").status == "certified"
    saved_models.bert(tmp_path / "three", num_labels=3)
    with pytest.raises(
        ValueError, match=r"'classifier.bias' must have shape \(2,\), like the model's; three has \(3,\)"
    ):
        certified(model, data, prior=tmp_path / "three")


def test_adapters_are_certified_alone(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    base = AutoModelForSequenceClassification.from_pretrained(saved_models.bert(tmp_path / "base"))
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", r=2)).eval()
    initial = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.01 * torch.randn_like(p))
    tokens = torch.randint(4, 16, (40, 6))
    data = [{"input_ids": tokens[i : i + 4], "labels": tokens[i : i + 4, 0] % 2} for i in range(0, 40, 4)]
    result = certified(model, data, prior=initial)
    assert result.num_parameters == sum(p.numel() for p in initial.values())
    assert any("lora_B" in name for name in result.by_module)
    folder = certified(model, data, prior=tmp_path / "base")
    assert any("lora_A" in note and "centered on 0" in note for note in folder.notes)
