"""Models whose weights are spread over processes or devices: the numbers of one process, or a clear refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from launch import on_two_processes
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from hf_pacgen import (
    PACGenResult,
    ScoreConfig,
    expected_sharpness,
    hessian_diagonal,
    hessian_lipschitz,
    hessian_vector_product,
    pacgen,
)

SUMS = (
    "score",
    "kl_complexity",
    "kl_active_fraction",
    "loss",
    "hessian_trace",
    "hessian_trace_stderr",
    "hessian_lipschitz",
    "hessian_lipschitz_stderr",
    "hessian_lipschitz_max",
    "kl_excess",
    "kl_curvature",
    # of weights that are looked at on every process
    "score_stderr",
    "kl_complexity_stderr",
    "kl_excess_stderr",
    "kl_curvature_stderr",
    "num_units",
    "num_examples",
    "num_parameters",
)
DIFFERENCES = ScoreConfig(hvp="finite_difference", passes=2)


def model(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    if name == "lora":  # whose boxes are those of the merged weights
        config = LoraConfig(r=2, target_modules=["c_attn", "wte"], fan_in_fan_out=True)
        return get_peft_model(tiny.make("gpt2", dtype=dtype), config).to(dtype)  # type: ignore[arg-type, no-any-return]
    if name != "tokens":
        return tiny.make(name, dtype=dtype)
    torch.manual_seed(0)
    return tiny.bert_tokens().to(dtype).eval()


def batches(name: str) -> list[dict[str, Tensor]]:
    """Batches that do not divide by two, one of a single example, one with labels in its second half only."""
    examples = tiny.examples("gpt2" if name == "lora" else name, 11, ignore=0.6 if name == "tokens" else 0.0)
    parts = tiny.split(examples, 4, 3, 3, 1)
    if name == "tokens":
        parts[1]["labels"][:2] = -100
    return parts


def sharded(name: str, dtype: torch.dtype = torch.float64) -> Any:
    made: Any = model(name, dtype)
    layers = {"llama": lambda: made.model.layers, "gpt2": lambda: made.transformer.h}
    layers["lora"] = lambda: made.base_model.model.transformer.h
    for layer in layers.get(name, lambda: made.bert.encoder.layer)():
        fully_shard(layer)
    return fully_shard(made)


def check(ok: bool, what: str) -> None:
    if not ok:
        raise AssertionError(what)


# ------------------------------------------------------------------------------------------------ FSDP2, two processes


def _score(name: str, settings: dict[str, Any], expected: dict[str, Any]) -> None:
    made, config = sharded(name), ScoreConfig(**settings)
    made(**batches(name)[0]).loss.backward()
    before = {
        n: (p, p.to_local().clone(), p.grad.to_local().clone())
        for n, p in made.named_parameters()
        if p.grad is not None
    }
    with torch.no_grad():
        made(**batches(name)[0])  # leaves the outermost weights gathered
    result = pacgen(made, batches(name), config=config, progress=False).to_dict()
    for key in SUMS:
        wanted = None if expected[key] is None else pytest.approx(expected[key], rel=1e-3 if name == "lora" else 1e-5)
        check(result[key] == wanted, f"{key}: {result[key]}, not {expected[key]}")
    for module, part in expected["by_module"].items():
        check(
            result["by_module"][module] == pytest.approx(part, rel=1e-2 if name == "lora" else 1e-4, abs=1e-7),
            f"by_module {module}",
        )
    after = dict(made.named_parameters())
    for n, (parameter, weights, gradient) in before.items():
        check(after[n] is parameter and parameter.to_local().equal(weights), f"{n} is not as it was")
        check(parameter.grad.to_local().equal(gradient), f"the gradient of {n} is not as it was")


@pytest.mark.parametrize("name", ["bert", "tokens", "llama", "gpt2", "lora"])
def test_a_sharded_model_has_the_score_of_a_whole_one(name: str) -> None:
    expected = pacgen(model(name), batches(name), config=DIFFERENCES, progress=False).to_dict()
    settings = {"hvp": "finite_difference", "passes": 2}
    on_two_processes(_score, name, settings, expected)


@pytest.mark.parametrize("estimator", ["hutchinson", "gauss_newton"])
def test_every_estimator_sums_over_shards(estimator: str) -> None:
    settings: Any = {"hvp": "finite_difference", "estimator": estimator, "lipschitz_directions": 0, "rho": 0.2}
    expected = pacgen(model("bert"), batches("bert"), config=ScoreConfig(**settings), progress=False).to_dict()
    on_two_processes(_score, "bert", settings, expected)


def _parts(diagonal: dict[str, Tensor], product: dict[str, Tensor], rho: float, ones: dict[str, Tensor]) -> None:
    from torch.distributed.tensor import DTensor

    made, data = sharded("bert"), batches("bert")

    def same(values: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
        for name, value in values.items():
            check(isinstance(value, DTensor) and value.placements[0].is_shard(0), f"{name} is whole")
            whole = value.full_tensor()  # type: ignore[attr-defined]
            check((whole - expected[name]).norm() <= 1e-5 * expected[name].norm() + 1e-9, f"{name} differs")

    estimate = hessian_diagonal(made, data, config=ScoreConfig(standard_error=True), progress=False)
    same(estimate.values, diagonal)
    check(estimate.stderr is not None and estimate.stderr.keys() == diagonal.keys(), "stderr")
    vector = {n: torch.full_like(p, 0.5) for n, p in made.named_parameters()}
    same(hessian_vector_product(made, data, vector), product)
    same(hessian_vector_product(made, data, ones), product)  # a whole vector will do as well
    found = hessian_lipschitz(made, data, progress=False).value
    check(found == pytest.approx(rho, rel=1e-5), f"rho is {found}, not {rho}")
    same(
        hessian_vector_product(made, data, {n: 0 * v for n, v in vector.items()}),
        {n: 0 * v for n, v in diagonal.items()},
    )


def test_the_parts_of_a_score_stay_sharded() -> None:
    whole, data = model("bert"), batches("bert")
    diagonal = hessian_diagonal(whole, data, config=ScoreConfig(hvp="finite_difference"), progress=False).values
    vector = {n: torch.full_like(p, 0.5) for n, p in whole.named_parameters()}
    product = hessian_vector_product(whole, data, vector, method="finite_difference")
    rho = hessian_lipschitz(whole, data, config=DIFFERENCES, progress=False).value
    on_two_processes(_parts, diagonal, product, rho, vector)


def _own_loss(expected: float) -> None:
    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return model(**batch).logits.square().sum(), len(batch["labels"])

    result = pacgen(sharded("bert"), batches("bert"), loss_fn=loss, progress=False)
    check(result.hessian_trace == pytest.approx(expected, rel=1e-5), f"trace {result.hessian_trace}, not {expected}")


def test_a_loss_of_the_users_on_shards() -> None:
    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return model(**batch).logits.square().sum(), len(batch["labels"])

    config = ScoreConfig(hvp="finite_difference")
    expected = pacgen(model("bert"), batches("bert"), loss_fn=loss, config=config, progress=False).hessian_trace
    on_two_processes(_own_loss, expected)


def _refusals(folder: str) -> None:
    data = batches("bert")
    made = sharded("bert")
    with pytest.raises(ValueError, match=r"sharded by fully_shard has no second derivatives.*got hvp='reverse_over"):
        pacgen(made, data, config=ScoreConfig(hvp="reverse_over_reverse"), progress=False)
    with pytest.raises(ValueError, match=r"hvp='auto' and lower precision. Load it in float32"):
        pacgen(sharded("bert", torch.bfloat16), data, progress=False)
    with pytest.raises(ValueError, match="estimator='exact' needs second derivatives"):
        pacgen(made, data, config=ScoreConfig(estimator="exact", lipschitz_directions=0), progress=False)
    with pytest.raises(ValueError, match="checkpoint_dir is for models that every process has as a whole"):
        pacgen(made, data, progress=False, checkpoint_dir=folder)
    with pytest.raises(ValueError, match="only the score and its parts are made for shards"):
        expected_sharpness(made, data, noise_scale=0.1, progress=False)
    rank = torch.distributed.get_rank()
    with pytest.raises(ValueError, match=r"These differ: the length of the data \(4 in process 0 and 3 in process 1\)"):
        pacgen(made, data[: 4 - rank], progress=False)
    partly = model("bert")
    fully_shard(partly.bert.encoder.layer[0])  # type: ignore[arg-type,union-attr,index]
    with pytest.raises(ValueError, match=r"Some trainable parameters are sharded and others are not: .'bert.embed"):
        pacgen(partly, data, progress=False)
    with torch.no_grad():
        next(made.parameters()).to_local().view(-1)[:1].fill_(float("nan") if rank else 1.0)
    with pytest.raises(ValueError, match="contain NaN or infinity"):
        pacgen(made, data, progress=False)


def test_what_shards_cannot_do_is_refused_on_every_process(tmp_path: Path) -> None:
    on_two_processes(_refusals, str(tmp_path))


def _meshes() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    made, grid = model("bert"), init_device_mesh("cpu", (2, 1), mesh_dim_names=("a", "b"))
    fully_shard(made, mesh=grid)
    with pytest.raises(ValueError, match=r"on a mesh of 2 dimension\(s\): expected FSDP2's shards"):
        pacgen(made, batches("bert"), progress=False)
    made = model("bert")
    fully_shard(made, mesh=grid["b"])
    with pytest.raises(ValueError, match=r"sharded over 1 of 2 processes: expected all of them. Make the mesh of all"):
        pacgen(made, batches("bert"), progress=False)
    made = model("bert")
    plan: Any = {"classifier": RowwiseParallel(), "bert.pooler.dense": ColwiseParallel()}
    parallelize_module(made, init_device_mesh("cpu", (2,)), plan)
    with pytest.raises(ValueError, match=r"without tensor parallelism or replication|sharded and others are not"):
        pacgen(made, batches("bert"), progress=False)


def test_other_ways_to_shard_are_refused() -> None:
    on_two_processes(_meshes)


# -------------------------------------------------------------------------------------------- one process


def test_deepspeed_is_refused() -> None:
    made = tiny.make("bert")
    made.classifier.bias.ds_id = 7  # type: ignore[union-attr,assignment]
    with pytest.raises(ValueError, match=r"'classifier.bias' is partitioned by DeepSpeed ZeRO-3.*FSDP2"):
        pacgen(made, batches("bert"), progress=False)


def test_the_first_fsdp_is_refused() -> None:
    class FullyShardedDataParallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = tiny.make("bert")

    with pytest.raises(ValueError, match=r"wrapped in FullyShardedDataParallel \(FSDP1\)"):
        pacgen(FullyShardedDataParallel(), batches("bert"), progress=False)


def score_of(made: nn.Module) -> PACGenResult:
    return pacgen(made, batches("bert"), progress=False)


def test_a_device_map_gives_the_same_score() -> None:
    from accelerate import dispatch_model

    plain, dispatched = tiny.make("bert"), tiny.make("bert")
    dispatched = dispatch_model(dispatched, {"bert": "cpu", "classifier": "cpu"}, force_hooks=True)
    assert hasattr(dispatched.classifier, "_hf_hook")
    assert score_of(dispatched).score == score_of(plain).score


def test_weights_that_are_offloaded_are_refused(tmp_path: Path) -> None:
    from accelerate import disk_offload

    made = tiny.make("bert")
    disk_offload(made, tmp_path, execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match="is on the meta device: its values are offloaded or were never loaded"):
        score_of(made)
