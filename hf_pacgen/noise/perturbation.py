"""Noise on the parameters of a model: every parameter has a twin that it can point to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_pacgen.distributed.shards import Shards, is_sharded, local, part_like, shard_like
from hf_pacgen.maths.counter_rng import CenteredBytes, stream_key
from hf_pacgen.maths.distributions import NoiseDistribution
from hf_pacgen.maths.score import neighborhood
from hf_pacgen.model.embeddings import dense
from hf_pacgen.model.parameters import trainable_parameters
from hf_pacgen.model.storage import aliases, view_like
from hf_pacgen.noise.layout import Block, Layout

ScaleFunction = Callable[[Block, Tensor], Tensor]
"""(block, its weights) -> σ of the block, both flat and at least float32."""

DIVIDED_INTO = "shards"  # in files of checkpoints, the name of the number of parts


class Perturbation:
    """Noise on parameters, put on and taken off without ever writing to the weights.

    Every parameter has a twin, into which w + u is written.  :meth:`apply` lets the parameters point to their
    twins, :meth:`restore` lets them point back: it costs nothing, what already refers to the weights (a state
    dict, say) keeps seeing them clean, and nothing that happens meanwhile can change a bit of them.

    Where FSDP2 (``fully_shard``) shards the parameters, it gathers them out of storage of its own.  There w + u is
    written into the shard itself, and a copy of the weights gives it back, bit for bit.  Each process draws its slice
    of the noise of the whole parameter, so "uniform" noise is that of one process; the other distributions, which are
    drawn piece by piece from a generator, have another draw of the same law.

    Everything that is flat here (blocks, buffers) holds this process's part of the parameters.

    Args:
        parameters: by name, on one device each; sharded by ``fully_shard`` all of them or none.
        model: whose they are; needed if it is sharded.
        distribution: of the noise.  σ is the half-width of "uniform" and the standard deviation (before the
            truncation to N_i = γ|w_i| + ε) of the others.
        block_size: elements treated at a time.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        model: nn.Module | None = None,
        distribution: NoiseDistribution | str = NoiseDistribution.UNIFORM,
        gamma: float = 0.1,
        epsilon: float = 0.1,
        block_size: int | None = None,
    ) -> None:
        shards = Shards(model) if model is not None else None
        self._shards = shards if shards is not None and shards.active else None
        offsets = self._shards.offsets if self._shards is not None else {}
        for name, parameter in parameters.items():
            # tensor parallelism, or DeepSpeed ZeRO-3
            if (is_sharded(parameter) and name not in offsets) or hasattr(parameter, "ds_id"):
                raise ValueError(
                    f"The parameter {name!r} is sharded over processes ({type(parameter).__name__}), and noise needs "
                    "whole parameters, or shards of FSDP2 (fully_shard) that come with model=model. Train "
                    "with DistributedDataParallel or FSDP2 instead."
                )
        # other names of one memory have no noise of their own: they point to the same noisy weights
        everything = parameters if model is None else {**parameters, **dict(model.named_parameters())}
        shared = {name: first for name, first in aliases(everything).items() if first in parameters}
        parameters = {name: parameter for name, parameter in parameters.items() if name not in shared}
        self._aliases = {name: (first, everything[name]) for name, first in shared.items() if first in parameters}
        self._axes = {name: view_like(everything[f], everything[name]) or () for name, f in shared.items()}
        self.parameters = dict(parameters)
        self.kind = NoiseDistribution(distribution).facts
        self.gamma, self.epsilon = gamma, epsilon
        self._offsets = {name: offsets.get(name, 0) for name in parameters}
        self.weights = {name: local(parameter).data for name, parameter in parameters.items()}
        self.layout = Layout(self.weights, block_size=block_size, offsets=self._offsets)
        self._buffers = self.layout.buffers()
        self._twins = self.layout.views(self._buffers)
        self._twin_of = [self._buffers[block.pool][block.begin : block.end] for block in self.layout.blocks]
        self._clean = self.layout.views(self.layout.buffers()) if self.divided else {}
        self._pieces: dict[int, Tensor] = {}  # blocks' weights, where they are views that last
        streams = {name: stream_key("parameter", name) for name in parameters}
        # where the random numbers of each block come from: stream, element of it, place in the block
        self._streams = [
            [(streams[s.name], self._offsets[s.name] + s.start, s.at) for s in block.segments]
            for block in self.layout.blocks
        ]
        self._bytes = {
            device: CenteredBytes(max(b.size for b in self.layout.blocks if b.pool[0] == device), device=device)
            for device in {block.pool[0] for block in self.layout.blocks}
        }
        # how often each parameter had been written to when the noise was put on
        self._versions: dict[str, int] = {}
        self.applied = False

    @classmethod
    def of_model(cls, model: nn.Module, **settings: Any) -> Perturbation:
        """Noise on all trainable parameters of a model, which must be finite."""
        return cls(trainable_parameters(model, Shards(model).all_finite), model=model, **settings)

    # ------------------------------------------------------------------------------- parts of the parameters

    @property
    def touched(self) -> list[Tensor]:
        """The parameters that have noise."""
        return list(self.parameters.values())

    @property
    def divided(self) -> bool:
        """Whether each process has only a part of every parameter, and the averaged gradient of that part."""
        return self._shards is not None

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return 1 if self._shards is None else self._shards.count

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over the parts, in place."""
        return tensor if self._shards is None else self._shards.sum_(tensor)

    def part(self, name: str, value: Tensor) -> Tensor:
        """What belongs to this process's part of a parameter, of a tensor like it or of one number for all."""
        if value.numel() == 1 and not is_sharded(value):
            return value.reshape(()).expand(self.weights[name].shape)
        return part_like(value, self.parameters[name], self._offsets[name])

    def gradient(self, name: str) -> Tensor | None:
        """That of this process's part of a parameter, dense."""
        gradient = self.parameters[name].grad
        for alias, (first, other) in self._aliases.items():
            if first == name and other.grad is not None:
                whole = other.grad.to_dense() if other.grad.is_sparse else other.grad
                part = whole.permute(_inverse(self._axes[alias]))
                gradient = part if gradient is None else (dense(gradient) + part)
        if gradient is None:
            return None
        here = gradient.detach() if self._shards is None else local(gradient.detach())
        return dense(here) if here.is_sparse else here

    def gradients(self) -> dict[str, Tensor | None]:
        """All of them, by name."""
        return {name: self.gradient(name) for name in self.parameters}

    @contextmanager
    def gradients_aside(self) -> Iterator[None]:
        """No gradients inside, and afterwards those of before."""
        owners = [*self.parameters.values(), *(other for _, other in self._aliases.values())]
        kept = [owner.grad for owner in owners]
        for owner in owners:
            owner.grad = None
        try:
            yield
        finally:
            for owner, gradient in zip(owners, kept, strict=True):
                owner.grad = gradient

    def reduce_every_gradient(self) -> None:
        """Let the next backward pass give averaged gradients of the parts, also where it was to wait for others."""
        if self._shards is not None:
            self._shards.reduce_every_gradient()

    def like_parameters(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of this process's parts, spread over the processes as the parameters are."""
        return {name: shard_like(part, self.parameters[name]) for name, part in tensors.items()}

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors as :meth:`like_parameters` gives them, whole and on the CPU; all processes must call."""
        whole = self._shards.whole if self._shards is not None else Tensor.detach
        return {name: whole(tensor).cpu().clone() for name, tensor in tensors.items()}

    def keep_clean(self, state_dict: dict[str, Any]) -> None:
        """Let a state dict stay as it is now, where :meth:`apply` would write to what it refers to."""
        for key, value in list(state_dict.items()) if self.divided else ():
            if is_sharded(value):
                state_dict[key] = value.clone()

    # ---------------------------------------------------------------------------------------------- the noise

    @torch.no_grad()
    def draw(self, scale: ScaleFunction, *key: str | int, factor: float = 1.0) -> None:
        """Draw u at the level factor · σ, as a function of the key and the parameters' names, for the next apply."""
        self.restore()
        self.follow()  # other code may have loaded or swapped weights since the last step
        stream = stream_key(*key)
        for block in self.layout.blocks:
            weights, twin = self.weights_of(block), self._twin_of[block.index]
            sigma = scale(block, weights)
            if self.kind.from_words and twin.dtype == weights.dtype:
                # in one pass, where the noise need not be rounded to another type
                torch.addcmul(weights, self._levels(block, stream), sigma, value=factor / 128, out=twin)
            else:
                twin.copy_(weights + self._noise(block, weights, sigma, stream, factor))

    @torch.no_grad()
    def redraw(self, scale: ScaleFunction, block: Block, *key: str | int, factor: float = 1.0) -> Tensor:
        """The u of a block that :meth:`draw` gives for a key; flat, at least float32."""
        weights = self.weights_of(block)
        return self._noise(block, weights, scale(block, weights), stream_key(*key), factor)

    @torch.no_grad()
    def mirror(self) -> None:
        """Turn w + u into w - u."""
        for block in self.layout.blocks:
            twin = self._twin_of[block.index]
            twin.neg_().add_(self.layout.gather(block, self.weights), alpha=2)

    def noise(self, block: Block) -> Tensor:
        """The u of the last draw in a block, as rounded in the weights; flat, at least float32."""
        return self._twin_of[block.index].to(block.wide) - self.weights_of(block)

    def weights_of(self, block: Block) -> Tensor:
        """The weights of a block without noise (of shards: while they have none); flat, at least float32."""
        piece = self._pieces.get(block.index)
        if piece is None:
            piece = self.layout.gather(block, self.weights, block.wide)
            segment = block.only
            if segment is not None and self.weights[segment.name].is_contiguous() and block.wide == block.pool[1]:
                self._pieces[block.index] = piece
        return piece

    def second_moment(self, weights: Tensor, sigma: Tensor) -> Tensor:
        """E u² at the level σ, which may be overwritten."""
        return self.kind.second_moment_at(sigma, self._box(weights) if self.kind.needs_box else None)

    def apply(self) -> None:
        """Put the last draw on the parameters."""
        if self._shards is not None:
            return self._write(self._shards)
        self._versions = {}
        self.applied = True  # first, so that an interrupt between two parameters leaves something to restore
        for name, parameter in self.parameters.items():
            self._versions[name] = parameter._version
            parameter.data = self._twins[name]
        for name, (first, other) in self._aliases.items():
            other.data = self._twins[first].permute(self._axes[name])
        # autocast caches casts of the weights and would go on using the old ones
        torch.clear_autocast_cache()

    def restore(self, *, written: bool = False) -> None:
        """Give the parameters their weights back; does nothing where they have them.

        With ``written`` what other code wrote to a parameter in place meanwhile is kept, where that can be told.
        """
        if not self.applied:
            return
        if self._shards is not None:
            return self._write_back(self._shards)
        for name, parameter in self.parameters.items():
            here, twin, weights = parameter.data, self._twins[name], self.weights[name]
            if (here.dtype, here.device) != (twin.dtype, twin.device):
                parameter.data = weights.to(here.device, here.dtype)  # other code has cast or moved the model
            elif here.data_ptr() == twin.data_ptr():  # or put another tensor in its place, which stays
                if written and parameter._version != self._versions.get(name):
                    weights.copy_(twin)
                parameter.data = weights
            elif here.equal(twin):  # copied, as double() and float() together do: no weights of another's making
                parameter.data = weights
        for name, (first, other) in self._aliases.items():
            twin = self._twins[first]
            if other.data_ptr() == twin.data_ptr() or (other.dtype, other.device) != (twin.dtype, twin.device):
                other.data = self.parameters[first].data.permute(self._axes[name])
        torch.clear_autocast_cache()
        self.applied = False

    @torch.no_grad()
    def _write(self, shards: Shards) -> None:
        self.restore()  # or the copy would be one of noise
        for name, parameter in self.parameters.items():
            self._clean[name].copy_(local(parameter))
        self.applied = True
        for name, parameter in self.parameters.items():
            local(parameter).copy_(self._twins[name])
        shards.reshard()
        torch.clear_autocast_cache()

    @torch.no_grad()
    def _write_back(self, shards: Shards) -> None:
        for name, parameter in self.parameters.items():
            # looked up anew: FSDP2's first forward pass may give a shard other storage
            local(parameter).copy_(self._clean[name])
        self.follow()  # there, where what is left behind has noise
        self.applied = False
        shards.reshard()
        shards.abandon()
        torch.clear_autocast_cache()

    def twin(self, block: Block) -> Tensor:
        """Where w + u of a block lies, flat, in the dtype of the weights."""
        return self._twin_of[block.index]

    def twins(self) -> dict[str, Tensor]:
        """The same by parameter name, in this process's shapes."""
        return dict(self._twins)

    def _levels(self, block: Block, stream: int) -> Tensor:
        """128 times uniform numbers of (-1, 1), valid until the next call."""
        return self._bytes[block.pool[0]](self._streams[block.index], block.size, stream).to(block.wide)

    def _noise(self, block: Block, weights: Tensor, sigma: Tensor, stream: int, factor: float) -> Tensor:
        if self.kind.from_words:
            return self._levels(block, stream).mul(sigma).mul_(factor / 128)
        box = self._box(weights)
        generator = torch.Generator(weights.device)
        noise = torch.zeros_like(weights)
        for s, (name, start, _) in zip(block.segments, self._streams[block.index], strict=True):
            here = slice(s.at, s.at + s.count)
            generator.manual_seed(stream_key(name ^ stream, start))
            noise[here] = self.kind.at_level(sigma[here] * factor, box[here]).sample(generator)
        return noise

    def _box(self, weights: Tensor) -> Tensor:
        return neighborhood(weights, gamma=self.gamma, epsilon=self.epsilon)

    def follow(self) -> None:
        """Find the weights again where other code let the parameters point elsewhere."""
        for name, parameter in self.parameters.items():
            weights, here = self.weights[name], (parameter if self._shards is None else local(parameter)).data
            if here.data_ptr() == weights.data_ptr():
                continue
            if (here.shape, here.dtype, here.device) != (weights.shape, weights.dtype, weights.device):
                raise RuntimeError(
                    f"The parameter {name!r} was {tuple(weights.shape)} {weights.dtype} on {weights.device} when noise "
                    f"was set up and is {tuple(here.shape)} {here.dtype} on {here.device} now. "
                    "Move and cast the model before training starts."
                )
            self.weights[name] = here
            self._pieces.clear()


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))
