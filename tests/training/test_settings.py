"""Noise in less common settings of a Trainer: both shells agree, noise is on, and it comes off to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from training_runs import SHELLS, Recorder, arguments, bert, difference, llama, same, trained, weights
from transformers import TrainerCallback

from hf_pacgen.config import NoiseConfig
from hf_pacgen.training.callback.callback import PACGenCallback

NOISE = NoiseConfig(draw="step", curvature_every=2)  # type: ignore[arg-type]


def mixed() -> nn.Module:
    model = bert()
    model.bert.encoder.layer[0].to(torch.bfloat16)  # type: ignore[union-attr, index, operator]
    for layer in (model.bert.encoder.layer[0],):  # type: ignore[union-attr, index]
        layer.register_forward_pre_hook(_cast(torch.bfloat16))  # type: ignore[union-attr]
        layer.register_forward_hook(lambda module, args, output: output.float())  # type: ignore[union-attr]
    return model


def _cast(dtype: torch.dtype) -> Any:
    return lambda module, args: tuple(
        a.to(dtype) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args
    )


def lora() -> nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    return peft.get_peft_model(llama(), config)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "last step of fewer micro-batches": (
        llama,
        {"gradient_accumulation_steps": 3, "max_steps": -1, "num_train_epochs": 1},
    ),
    "float64": (lambda: llama().double(), {}),
    "reentrant checkpointing": (
        llama,
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    ),
    "compiled": (llama, {"torch_compile": True, "torch_compile_backend": "aot_eager", "max_steps": 3}),
    "mixed dtypes": (mixed, {}),
    "LoRA": (lora, {}),
    "adafactor": (bert, {"optim": "adafactor"}),
}


class Watch(TrainerCallback):
    """Which parameters are displaced while the noise is on, by comparison with the step's beginning."""

    def __init__(self) -> None:
        self.displaced: set[str] = set()
        self.clean: dict[str, Any] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.register_forward_pre_hook(self._look) if not self.clean else None
        self.clean = weights(model)

    def _look(self, model: Any, args: Any) -> None:
        if not torch.compiler.is_compiling():
            now = weights(model)
            self.displaced |= {name for name in now if not now[name].equal(self.clean[name])}


@pytest.mark.parametrize("case", CASES)
def test_works_with(case: str) -> None:
    build, settings = CASES[case]
    finals, plain = [], trained("plain", None, model=build(), **settings)
    for shell in SHELLS:
        watch, model, recorder = Watch(), build(), Recorder()
        dtypes = {name: p.dtype for name, p in model.named_parameters()}
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        before = weights(model)
        run = trained(shell, NOISE, model=model, before=[watch, recorder], **settings)
        if case != "compiled":
            assert watch.displaced == trainable
        assert {name: p.dtype for name, p in model.named_parameters()} == dtypes
        after = weights(model)
        assert all(after[name].equal(before[name]) for name in before.keys() - trainable)
        assert same(after, recorder.ended[-1]) and run.state.global_step == plain.state.global_step
        assert all(tensor.isfinite().all() for tensor in after.values())
        finals.append(after)
    assert same(*finals) and difference(finals[0], weights(plain.model)) > 0


def test_all_micro_batches_of_a_fresh_draw_are_noisy() -> None:
    norms: list[float] = []

    model: Any = llama()
    model.model.norm.register_forward_hook(lambda *_: norms.append(model.model.norm.weight.double().sum().item()))
    trained("trainer", NoiseConfig(), model=model, gradient_accumulation_steps=4, max_steps=2)
    assert len(set(norms)) == 8


def test_any_trainer_takes_the_callback(tmp_path: Any) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from saved_models import tokenizer

    config = arguments(trl.SFTConfig, output_dir=str(tmp_path), max_steps=2, max_length=8)
    rows = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3, 4, 5]] * 16})
    model = llama()
    run = trl.SFTTrainer(
        model=model,
        args=config,
        train_dataset=rows,
        processing_class=tokenizer(eos_token="[SEP]"),
        callbacks=[PACGenCallback(noise=NoiseConfig())],
    )
    recorder = Recorder()
    run.add_callback(recorder)
    run.train()
    assert same(weights(model), recorder.ended[-1]) and run.state.global_step == 2


class ByHand(nn.Module):
    """Two losses with different parameters, of which one is never used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used, self.unused = nn.Embedding(50, 3), nn.Linear(3, 3)
        self.empty = nn.Parameter(torch.zeros(0))

    def forward(self, input_ids: Any = None, labels: Any = None) -> dict[str, Any]:
        logits = self.used(input_ids).mean(1)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("curvature", ["price", "adam", "hutchinson"])
def test_unused_and_empty_parameters(curvature: str) -> None:
    noise = NoiseConfig(curvature=curvature, curvature_every=1)  # type: ignore[arg-type]
    finals = [weights(trained(shell, noise, model=ByHand(), weight_decay=0.0).model) for shell in SHELLS]
    before = weights(ByHand())
    assert same(*finals) and finals[0]["unused.weight"].equal(before["unused.weight"])


def test_noise_reaches_the_loss_of_a_large_model_too() -> None:
    """Parameters of more than one block."""
    model = ByHand()
    model.used = nn.Embedding(50, 9001)
    model.head = nn.Linear(9001, 3)
    model.forward = lambda input_ids, labels: {  # type: ignore[method-assign]
        "loss": nn.functional.cross_entropy(model.head(model.used(input_ids).mean(1)), labels)
    }
    watch = Watch()
    trained("trainer", NOISE, model=model, before=[watch], max_steps=1)
    assert {"used.weight", "head.weight"} <= watch.displaced
