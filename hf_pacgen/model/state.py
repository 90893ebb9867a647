"""Leave a model exactly as it was found: weights, gradients, modes, buffers and random state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import nn

from hf_pacgen.distributed.deepspeed import engine_module
from hf_pacgen.model.ctc import differentiable_ctc

__all__ = [
    "base_model",
    "twice_differentiable",
    "evaluation_mode",
    "forget_caches",
    "fresh_caches",
    "preserved",
    "seed_everything",
    "transformable",
    "unwrap",
    "uses_checkpointing",
    "uses_reentrant_checkpointing",
    "without_generation_caches",
]


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel, DeepSpeed and torch.compile wrappers."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif (inside := engine_module(model)) is not None:
            model = inside
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def base_model(model: Any) -> nn.Module:
    """The model that a PEFT adapter wraps, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put gradients aside, and give back gradients, modes, buffers, caches and random state at the end.

    Weights are not copied here: what displaces them keeps a copy of its own.  Hooks on accumulated gradients sleep
    meanwhile: those of DeepSpeed would reduce the gradients of a measure into the next step's, and an optimizer that
    steps in the backward pass would step.
    """
    hooks = [parameter._post_accumulate_grad_hooks for parameter in model.parameters()]
    sleeping = [(found, dict(found)) for found in hooks if found]
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, None if buffer is None or buffer.is_meta else buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    with random_state_kept(), fresh_caches(model):
        try:
            for parameter, _ in gradients:
                parameter.grad = None
            for found, _ in sleeping:
                found.clear()
            yield
        finally:
            for found, content in sleeping:
                found.update(content)
            for parameter, gradient in gradients:
                parameter.grad = gradient
            for module, mode in modes:
                module.training = mode
            for module, name, buffer, copy in buffers:
                if buffer is not None and copy is not None:
                    with torch.no_grad():
                        buffer.copy_(copy)
                module._buffers[name] = buffer


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Give back the state from which python, NumPy and torch draw at the end."""
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    random_state = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(random_state[0])
        numpy.random.set_state(random_state[1])
        torch.set_rng_state(random_state[2])
        if on_devices:
            torch.cuda.set_rng_state_all(on_devices)


def evaluation_mode(model: nn.Module, *, checkpointing: bool) -> None:
    """Dropout off; with ``checkpointing``, modules that checkpoint their activations go on doing so.

    transformers checkpoints a layer only while ``layer.training`` is set, so that flag alone is
    kept on the layer itself, and not on what is in it.
    """
    model.eval()
    if checkpointing:
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False) is True:
                module.training = True


def forget_caches(model: nn.Module) -> None:
    """Drop what modules have kept of an earlier forward pass, made of the weights as they were then.

    LeViT keeps its attention biases in evaluation mode: the next pass would not see that the weights have moved.
    """
    for cache in _caches(model):
        cache.clear()


@contextmanager
def fresh_caches(model: nn.Module) -> Iterator[None]:
    """Without what modules have kept of earlier passes, while inside; afterwards with that alone.

    A dict that was put in the place of another meanwhile is emptied.
    """
    kept = [(cache, dict(cache)) for cache in _caches(model)]
    forget_caches(model)
    try:
        yield
    finally:
        forget_caches(model)
        for cache, content in kept:
            cache.update(content)


@contextmanager
def without_generation_caches(model: nn.Module) -> Iterator[None]:
    """With ``config.use_cache`` off, as the Trainer has it: keys and values of earlier tokens are not wanted.

    RWKV writes its state into tensors that its gradient needs, where it is on.
    """
    configs = {id(config): config for m in model.modules() if (config := getattr(m, "config", None)) is not None}
    caching = [config for config in configs.values() if getattr(config, "use_cache", None) is True]
    try:
        for config in caching:
            config.use_cache = False
        yield
    finally:
        for config in caching:
            config.use_cache = True


def _caches(model: nn.Module) -> Iterator[dict[Any, Any]]:
    for module in model.modules():
        for name, value in vars(module).items():
            if "cache" in name and type(value) is dict:
                yield value


def uses_checkpointing(model: nn.Module) -> bool:
    """Whether the model recomputes activations in its backward pass."""
    return any(getattr(module, "gradient_checkpointing", False) is True for module in model.modules())


def uses_reentrant_checkpointing(model: nn.Module) -> bool:
    """Whether it does so in the older, reentrant way, which only ``.backward()`` can go through."""
    return any(
        (getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", None) or {}).get(
            "use_reentrant", False
        )
        for module in model.modules()
    )


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Attention, and the loss of CTC, that can be differentiated twice, whatever the model was loaded with.

    The fused kernels behind scaled-dot-product attention have no second derivative, its math
    backend has.  Implementations outside torch (flash, flex) are swapped for sdpa meanwhile.
    """
    swapped: list[tuple[Any, str]] = []
    for module in model.modules():
        config = getattr(module, "config", None)
        name = getattr(config, "_attn_implementation", None)
        if isinstance(name, str) and name not in ("eager", "sdpa"):
            swapped.append((config, name))
            config._attn_implementation = "sdpa"  # type: ignore[union-attr]
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), differentiable_ctc():
            yield
    finally:
        for config, name in swapped:
            config._attn_implementation = name


@contextmanager
def transformable(model: nn.Module) -> Iterator[None]:
    """Without the hooks that make embeddings' outputs require gradients, which torch.func does not allow.

    transformers and PEFT add them with gradient checkpointing, and this method goes without that.
    """
    removed = []
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__name__", "").startswith("make_inputs_require_grad"):
                removed.append((module, dict(module._forward_hooks)))
                del module._forward_hooks[key]
    try:
        yield
    finally:
        for module, hooks in reversed(removed):
            module._forward_hooks.clear()
            module._forward_hooks.update(hooks)


def seed_everything(seed: int) -> None:
    """Seed python, NumPy and torch, from which samplers and collators draw."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
