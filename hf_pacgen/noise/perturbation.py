"""Noise on the parameters of a model: every parameter has a twin that it can point to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hf_pacgen.distributed.shards import Shards, is_sharded, local
from hf_pacgen.maths.counter_rng import CenteredBytes, stream_key
from hf_pacgen.maths.distributions import NoiseDistribution
from hf_pacgen.maths.score import neighborhood
from hf_pacgen.noise.layout import Block, Layout

__all__ = ["Perturbation", "ScaleFunction"]

ScaleFunction = Callable[[Block, Tensor], Tensor]
"""(block, its weights) -> σ of the block, both flat and at least float32."""


class Perturbation:
    """Noise on parameters, put on and taken off without ever writing to the weights.

    Every parameter has a twin, into which w + u is written.  :meth:`apply` lets the parameters point to their
    twins, :meth:`restore` lets them point back: it costs nothing, what already refers to the weights (a state
    dict, say) keeps seeing them clean, and nothing that happens meanwhile can change a bit of them.

    Where FSDP2 (``fully_shard``) shards the parameters, it gathers them out of storage of its own.  There w + u is
    written into the shard itself, and a copy of the weights gives it back, bit for bit.  Each process draws its slice
    of the noise of the whole parameter, so "uniform" noise is that of one process; the other distributions, which are
    drawn piece by piece from a generator, have another draw of the same law.

    Args:
        parameters: by name, on one device each; sharded by ``fully_shard`` all of them or none.
        distribution: of the noise.  σ is the half-width of "uniform" and the standard deviation (before the
            truncation to N_i) of the others.
        gamma, epsilon: of N_i = γ|w_i| + ε, for noise that needs a box.
        block_size: elements treated at a time.
        shards: the model's, if it is sharded.

    Raises:
        ValueError: a parameter is sharded over processes in another way (tensor parallelism, DeepSpeed ZeRO-3), or
            without ``shards``.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        distribution: NoiseDistribution | str = NoiseDistribution.UNIFORM,
        gamma: float = 0.1,
        epsilon: float = 0.1,
        block_size: int | None = None,
        shards: Shards | None = None,
    ) -> None:
        self.shards = shards if shards is not None and shards.active else None
        offsets = self.shards.offsets if self.shards is not None else {}
        for name, parameter in parameters.items():
            if (is_sharded(parameter) and name not in offsets) or hasattr(parameter, "ds_id"):
                raise ValueError(
                    f"The parameter {name!r} is sharded over processes ({type(parameter).__name__}), and noise needs "
                    "whole parameters, or shards of FSDP2 (fully_shard) that come with shards=Shards(model). Train "
                    "with DistributedDataParallel or FSDP2 instead."
                )
        self.parameters = dict(parameters)
        self.kind = NoiseDistribution(distribution).facts
        self.gamma, self.epsilon = gamma, epsilon
        self.offsets = {name: offsets.get(name, 0) for name in parameters}
        self.weights = {name: local(parameter).data for name, parameter in parameters.items()}
        self.layout = Layout(self.weights, block_size=block_size, offsets=self.offsets)
        self._buffers = self.layout.buffers()
        self._twins = self.layout.views(self._buffers)
        self._twin_of = [self._buffers[block.pool][block.begin : block.end] for block in self.layout.blocks]
        self._clean = self.layout.views(self.layout.buffers()) if self.shards is not None else {}
        self._pieces: dict[int, Tensor] = {}
        streams = {name: stream_key("parameter", name) for name in parameters}
        self._streams = [
            [(streams[s.name], self.offsets[s.name] + s.start, s.at) for s in block.segments]
            for block in self.layout.blocks
        ]
        """Where the random numbers of each block come from: stream, element of it, place in the block."""
        self._bytes = {
            device: CenteredBytes(max(b.size for b in self.layout.blocks if b.pool[0] == device), device=device)
            for device in {block.pool[0] for block in self.layout.blocks}
        }
        self._versions: dict[str, int] = {}
        """How often each parameter had been written to when the noise was put on."""
        self.applied = False

    @torch.no_grad()
    def draw(self, scale: ScaleFunction, *key: str | int, factor: float = 1.0) -> None:
        """Draw u at the level factor · σ, as a function of the key and the parameters' names, for the next apply.

        Raises:
            RuntimeError: a parameter has another shape, dtype or device than at the start.
        """
        self.restore()
        self._follow()
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
                self._pieces[block.index] = piece  # no copy, but a view that lasts
        return piece

    def second_moment(self, weights: Tensor, sigma: Tensor) -> Tensor:
        """E u² at the level σ, which may be overwritten."""
        return self.kind.second_moment_at(sigma, self._box(weights) if self.kind.needs_box else None)

    def apply(self) -> None:
        """Put the last draw on the parameters."""
        if self.shards is not None:
            return self._write(self.shards)
        self._versions = {}
        self.applied = True  # first, so that an interrupt between two parameters leaves something to restore
        for name, parameter in self.parameters.items():
            self._versions[name] = parameter._version
            parameter.data = self._twins[name]
        # autocast caches casts of the weights and would go on using the old ones
        torch.clear_autocast_cache()

    def restore(self, *, written: bool = False) -> None:
        """Give the parameters their weights back; does nothing where they have them.

        What other code did to a parameter meanwhile is kept where that can be told: a cast or a move, another tensor
        in its place, and with ``written`` what was written to it in place (which is lost otherwise).
        """
        if self.applied and self.shards is not None:
            self._write_back(self.shards)
        elif self.applied:
            for name, parameter in self.parameters.items():
                here, twin, weights = parameter.data, self._twins[name], self.weights[name]
                if (here.dtype, here.device) != (twin.dtype, twin.device):
                    parameter.data = weights.to(here.device, here.dtype)
                elif here.data_ptr() == twin.data_ptr():
                    if written and parameter._version != self._versions.get(name):
                        weights.copy_(twin)
                    parameter.data = weights
                elif here.equal(twin):  # copied, as double() and float() together do: no weights of another's making
                    parameter.data = weights
            torch.clear_autocast_cache()
            self.applied = False

    @torch.no_grad()
    def _write(self, shards: Shards) -> None:
        """Put the last draw into the shards."""
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
        self._follow()  # there, where what is left behind has noise
        self.applied = False
        shards.reshard()
        shards.abandon()
        torch.clear_autocast_cache()

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

    def _follow(self) -> None:
        """Find the weights again where other code let the parameters point elsewhere."""
        for name, parameter in self.parameters.items():
            weights, here = self.weights[name], (parameter if self.shards is None else local(parameter)).data
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
