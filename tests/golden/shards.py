"""A model whose weights FSDP2 spreads over two processes: the score, its parts, and a short noisy training."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.distributed.fsdp import fully_shard
from transformers import LlamaForCausalLM

from golden import measures, training
from golden.subjects import batches, model, ramp
from hf_pacgen import ScoreConfig, hessian_diagonal, hessian_lipschitz, hessian_vector_product, pacgen, perturbed

Case = Callable[[], dict[str, Any]]


def sharded(name: str) -> Any:
    made: Any = model(name, torch.float64)
    for layer in made.model.layers if name == "llama" else made.bert.encoder.layer:
        fully_shard(layer)
    return fully_shard(made)


def measured() -> Iterator[tuple[str, Case]]:
    for name in ("bert", "llama"):
        yield f"score/{name}", partial(_score, name)
        yield f"product/{name}", partial(_product, name)
    yield "rho/bert", partial(_lipschitz, "bert")
    for estimator in ("hutchinson", "gauss_newton", "blend"):
        yield f"diagonal-{estimator}/bert", partial(_diagonal, "bert", estimator=estimator)
    for distribution in ("uniform", "truncated_normal"):
        yield f"perturbed-{distribution}/bert", partial(_noisy, "bert", distribution)


def _data(name: str) -> Any:
    return batches(name, torch.float64)


def _score(name: str) -> dict[str, Any]:
    return measures.fields(pacgen(sharded(name), _data(name), progress=False), measures.SCORE)


def _product(name: str) -> dict[str, Any]:
    vector = ramp(model(name, torch.float64), 0.5)  # a whole vector will do for a sharded model
    return {"product": hessian_vector_product(sharded(name), _data(name), vector)}


def _lipschitz(name: str) -> dict[str, Any]:
    config = ScoreConfig(lipschitz_directions=3)
    result = hessian_lipschitz(sharded(name), _data(name), config=config, progress=False)
    return measures.fields(result, measures.LIPSCHITZ)


def _diagonal(name: str, **settings: Any) -> dict[str, Any]:
    config = ScoreConfig(standard_error=True, **settings)
    result = hessian_diagonal(sharded(name), _data(name), config=config, progress=False)
    return measures.fields(result, measures.DIAGONAL)


def _noisy(name: str, distribution: str) -> dict[str, Any]:
    made = sharded(name)
    with perturbed(made, 0.1, distribution=distribution, seed=3):
        return {"weights": {key: p.full_tensor().detach().clone() for key, p in made.named_parameters()}}


def trained() -> Iterator[tuple[str, Case]]:
    for case in ("price", "adam", "hutchinson"):
        yield f"trainer/{case}/llama", partial(_train, "trainer", **training.SETTINGS[case])
    yield "trainer/antithetic/llama", partial(_train, "trainer", antithetic=True)
    yield "callback/price/llama", partial(_train, "callback")


def _train(way: str, **settings: Any) -> dict[str, Any]:
    """Ten steps of a model that transformers shards while it loads it."""
    from transformers.distributed import DistributedConfig

    with tempfile.TemporaryDirectory() as mine:
        folders = [mine]
        torch.distributed.broadcast_object_list(folders)
        model("llama", torch.float64).save_pretrained(folders[0])  # type: ignore[operator]  # the first process alone writes
        torch.distributed.barrier()
        shards = DistributedConfig(fsdp_size=2)
        made = LlamaForCausalLM.from_pretrained(folders[0], dtype=torch.float64, distributed_config=shards)
        torch.distributed.barrier()
    return training.train(way, "llama", torch.float64, made=made, max_steps=10, **settings)
