"""Adapters of PEFT are loaded on their base, which several of them share."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import saved_models
import torch
from command_runs import QUICK, Run, refused, write_csv
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_pacgen import PACGenResult, ScoreConfig, pacgen
from hf_pacgen.command_line.inputs.adapters import find_adapter
from hf_pacgen.command_line.inputs.models import ModelArguments, load_config, load_model, processor_of
from hf_pacgen.command_line.inputs.tasks import Task, trained_task
from hf_pacgen.errors import InputError

CPU = torch.device("cpu")


def adapter(folder: Path, base: Path, *, seed: int = 0, labels: int = 3, **settings: Any) -> Path:
    """A classifier's adapter on an encoder, of random weights."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    settings = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"], **settings}
    adapted: Any = peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=False, **settings))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_models.bert(tmp_path_factory.mktemp("base") / "encoder", head=False)


def load(name: Path, args: ModelArguments, task: Task = Task.SEQUENCE_CLASSIFICATION) -> Any:
    config = load_config(str(name), args)
    assert trained_task(config) is task
    model, new = load_model(str(name), args, config, task, device=CPU)
    assert new == ()  # the head came with the adapter
    return model


def test_it_is_the_model_that_peft_loads(base: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", base)
    model = load(folder, ModelArguments())
    known = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    expected = peft.PeftModel.from_pretrained(known, folder, is_trainable=True).eval()
    tokens = torch.tensor([[2, 5, 6, 3]])
    torch.testing.assert_close(model.eval()(input_ids=tokens).logits, expected(input_ids=tokens).logits, atol=0, rtol=0)
    names = {n for n, p in expected.named_parameters() if p.requires_grad}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == names
    assert any("modules_to_save" in name for name in names)


def test_the_class_of_the_base_is_named_without_a_task_type(base: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", base, task_type=None, modules_to_save=["classifier"])
    assert json.loads((folder / "adapter_config.json").read_text())["auto_mapping"]["base_model_class"]
    assert load(folder, ModelArguments()).config.num_labels == 3


def test_several_adapters_of_one_base_load_it_once_and_leave_it_alone(base: Path, tmp_path: Path) -> None:
    names = [adapter(tmp_path / str(seed), base, seed=seed) for seed in range(3)]
    names.append(adapter(tmp_path / "biased", base, seed=3, bias="all"))  # writes into the base
    names.append(adapter(tmp_path / "after", base, seed=4))
    together = ModelArguments()
    for name in names:
        found, alone = (dict(load(name, args).named_parameters()) for args in (together, ModelArguments()))
        assert found.keys() == alone.keys()
        assert all(torch.equal(found[key], alone[key]) for key in found), name
    assert together.bases.loads == 2  # again after the one that wrote into it


def test_score_sharpness_certify_and_compare_take_them(run: Run, base: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "train.csv")
    names = [adapter(tmp_path / f"a{seed}", base, seed=seed, labels=2) for seed in range(2)]
    words = ("--dataset", data, "--no-progress")
    code, _, err = run("score", names[0], *words, "--lipschitz-directions", 0, "--output", tmp_path / "r.json")
    assert code == 0 and not err
    result = PACGenResult.load(tmp_path / "r.json")
    args = ModelArguments(device="cpu")
    model = load(names[0], args)
    assert result.num_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad) < 1000
    place, source = processor_of(str(names[0]), args)
    assert place == str(base) and source["revision"] is None
    assert run("sharpness", names[0], *words, "--noise-scale", 0, "--eigenvalues", 0)[0] == 0
    code, out, _ = run("certify", names[0], *words, "--prior", "zero", "--draws", 2)
    assert code == 0 and f"{result.num_parameters}" in out
    code, out, err = run("compare", *names, *words, "--lipschitz-directions", 0)
    assert code == 0 and "a0" in out and "a1" in out and not err


def test_a_language_models_adapter_scores_as_in_python(run: Run, tmp_path: Path) -> None:
    base = saved_models.gpt2(tmp_path / "base")
    settings: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": ["c_attn"], "fan_in_fan_out": True}
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, init_lora_weights=False, **settings)
    model: Any = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(tmp_path / "adapter")
    data = write_csv(tmp_path / "t.csv", [("good movie was bad",)], ("text",))
    assert run("score", tmp_path / "adapter", "--dataset", data, *QUICK, "--output", tmp_path / "r.json")[0] == 0
    batch = saved_models.tokenizer()("good movie was bad", return_tensors="pt")
    batch = {"input_ids": batch["input_ids"], "labels": batch["input_ids"]}
    expected = pacgen(model, [batch], config=ScoreConfig(lipschitz_directions=0), progress=False)
    assert PACGenResult.load(tmp_path / "r.json").loss == pytest.approx(expected.loss, rel=1e-5)


def test_four_bits(run: Run, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    folder, data = adapter(tmp_path / "adapter", base, labels=2), write_csv(tmp_path / "t.csv")
    words = ("--dataset", data, *QUICK, "--load-in-4bit")
    code, out, _ = run("score", folder, *words)
    assert code == 0 and "7 quantized layers" in out
    whole = saved_models.bert(tmp_path / "whole")
    refused(run, "--load-in-4bit is for the frozen base of a PEFT adapter.*is a whole model", "score", whole, *words)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(run, "--load-in-4bit needs bitsandbytes, which is not installed: pip install", "score", folder, *words)


def test_adapters_that_cannot_be_loaded(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = adapter(tmp_path / "adapter", base)
    settings = json.loads((folder / "adapter_config.json").read_text())

    def changed(name: str, **changes: Any) -> str:
        shutil.copytree(folder, tmp_path / name)
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(settings | changes))
        return str(tmp_path / name)

    gone = changed("gone", base_model_name_or_path="/no/such/base")
    with pytest.raises(InputError, match=r"adapter_config.json names '/no/such/base'. Name it with --base-model"):
        find_adapter(gone)
    found = find_adapter(gone, base=str(base))
    assert found is not None and found.base == str(base)
    with pytest.raises(InputError, match=r"does not say what its base model is"):
        find_adapter(changed("nameless", base_model_name_or_path=None))
    with pytest.raises(InputError, match=r"--base-model 'x' is for adapters of PEFT, and '.*' is none"):
        find_adapter(str(base), base="x")
    untyped = changed("untyped")
    (Path(untyped) / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no 'peft_type'"):
        find_adapter(untyped)
    weights = load_file(folder / "adapter_model.safetensors")
    weights.pop(next(name for name in weights if "lora_A" in name))
    broken = changed("broken")
    save_file(weights, Path(broken) / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"lacks weights that its adapter_config.json asks for: .*lora_A"):
        load(Path(broken), ModelArguments())
    misfit = changed("misfit", r=5)
    with pytest.raises(InputError, match=r"cannot be put on its base .* Give the base that it was trained on"):
        load(Path(misfit), ModelArguments())
    (Path(gone) / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"weights of the adapter '.*' cannot be read.*Save it again"):
        load(Path(gone), ModelArguments(base_model=str(base)))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"is an adapter of PEFT, which is not installed: pip install peft"):
        find_adapter(str(folder))


def test_what_the_hub_does_not_have_is_no_adapter() -> None:
    assert find_adapter("no/such-model") is None  # offline: said where the model is loaded


def test_a_checkpoint_without_a_tokenizer_has_that_of_its_run(tmp_path: Path) -> None:
    checkpoint = saved_models.bert(tmp_path / "run" / "checkpoint-5", with_tokenizer=False)
    assert processor_of(str(checkpoint), ModelArguments())[0] == str(checkpoint)
    saved_models.tokenizer().save_pretrained(tmp_path / "run")
    assert processor_of(str(checkpoint), ModelArguments())[0] == str(tmp_path / "run")
    assert processor_of("org/name", ModelArguments(revision="v1")) == (
        "org/name",
        {"revision": "v1", "trust_remote_code": False},
    )
