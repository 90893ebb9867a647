"""Models whose weights are spread over processes or devices: what can be measured, and how shards are summed.

Under FSDP2 (``fully_shard``) every process holds some rows of every weight, and a forward or backward pass is a
collective.  So all processes go through the same batches, each with its share of a batch's examples; displacements,
gradients and accumulators are those of the process's own rows; and what is summed over weights is summed over the
shards.  Random numbers are functions of an element's index in the whole weight, so the probes, and with them the
result, are those of one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_pacgen.distributed.processes import Processes

__all__ = ["Shards", "is_sharded", "local", "part_like", "refuse_partitioned", "shard_like"]


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a DTensor."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that is on this process, sharing its memory; the tensor itself if it is whole."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        return tensor.detach().to_local()  # type: ignore[attr-defined]


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A tensor of this process's rows as a DTensor sharded like a parameter; unchanged if that is whole."""
    if not is_sharded(parameter):
        return value
    like: Any = parameter.detach()
    return type(like).from_local(
        value, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def part_like(value: Tensor, parameter: Tensor, offset: int) -> Tensor:
    """The part of a whole or sharded tensor that belongs to this process's part of a parameter.

    Args:
        offset: index at which that begins in the whole flat parameter.
    """
    here = local(parameter)
    if is_sharded(value):
        return local(value.redistribute(placements=parameter.placements))  # type: ignore[attr-defined,operator]
    if value.shape == here.shape:
        return value
    return value.reshape(-1)[offset : offset + here.numel()].view(here.shape)


class Shards:
    """The shards of a model's weights on this process, or a whole model.

    Attributes:
        active: whether the weights are sharded at all.
        offsets: index in the whole flat weight at which this process's part begins, by name.
        processes: those that share the weights; a single one for a whole model.

    Raises:
        ValueError: weights partitioned in a way that is not FSDP2's along the first dimension.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = [m for m in model.modules() if any(kind.__name__ == "FSDPModule" for kind in type(m).__mro__)]
        """Those that FSDP2 manages, outer before inner."""
        refuse_partitioned(model)
        if self.modules:
            self.reshard()
        parameters: dict[str, Any] = {n: p for n, p in model.named_parameters() if hasattr(p, "to_local")}
        self.active, self.offsets, self.processes = bool(parameters), dict[str, int](), Processes()
        if self.active:
            self.offsets = {name: _offset(name, parameter) for name, parameter in parameters.items()}
            first = next(iter(parameters.values()))
            whole = [n for n, p in model.named_parameters() if p.requires_grad and not is_sharded(p)]
            if whole:
                raise ValueError(
                    f"Some trainable parameters are sharded and others are not: {whole[:5]}. Expected all of them "
                    "under fully_shard; call fully_shard(model) on the model itself, after its layers."
                )
            mesh = first.device_mesh
            self.processes = Processes.sharing(mesh.get_local_rank(), mesh.size(), first.device)

    @property
    def count(self) -> int:
        """The number of processes that share the weights; 1 for a whole model."""
        return self.processes.size

    def whole(self, tensor: Tensor) -> Tensor:
        """A sharded tensor gathered from all processes, which must call this together; a whole one as it is."""
        return tensor.detach().full_tensor() if is_sharded(tensor) else tensor.detach()  # type: ignore[attr-defined]

    def reshard(self) -> None:
        """Drop gathered copies of the weights, so that the next pass gathers what the shards hold now.

        FSDP2 keeps those of the outermost module after a forward pass, and would not see a displacement.
        """
        for module in self.modules:
            module.reshard()  # type: ignore[operator]

    def reduce_every_gradient(self) -> None:
        """Let the next backward pass add to the gradients of the shards, also where it was to wait for others."""
        for module in self._outermost():
            module.set_requires_gradient_sync(True)  # type: ignore[operator]

    def _outermost(self) -> Iterator[nn.Module]:
        inside: set[nn.Module] = set()
        for module in self.modules:
            if module not in inside:
                inside.update(module.modules())
                yield module

    def abandon(self) -> None:
        """Drop copies that are still gathered because an exception left the model in the middle of a forward pass.

        FSDP2 takes such a pass for one that goes on: its gradients are lost, and the next one starts anew.  Versions of
        torch that cannot start anew go on with what is gathered, also without noise.
        """
        if all(is_sharded(p) for _, p in self.model.named_parameters() if p.requires_grad):
            return
        for module in self._outermost():
            if hasattr(module, "reset_iter_state"):
                module.reset_iter_state()  # type: ignore[operator]

    @contextmanager
    def as_found(self) -> Iterator[None]:
        """On the way out the weights are shards again, however they were used inside."""
        try:
            yield
        finally:
            self.reshard()
            self.abandon()

    def sum(self, value: float) -> float:
        """Sum of a number over the shards; the number itself for a whole model."""
        if not self.active:
            return value
        return float(self.processes.sum_(torch.tensor([value], dtype=torch.float64)))

    def all_finite(self, weight: Tensor) -> bool:
        """Whether all elements of a weight are finite, over all its parts: every process comes to one conclusion."""
        return self.sum(float(not bool(local(weight).isfinite().all()))) == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum of a tensor over the shards, in place."""
        return self.processes.sum_(tensor) if self.active else tensor

    def share(self, labeled: list[bool]) -> tuple[list[int], float]:
        """The examples of a batch that are this process's, and their weight.

        A process without labeled examples computes on one of another's, at weight 0: it must take part in the
        collectives.

        Args:
            labeled: for every example, whether it has loss units.
        """
        size, rank, count = self.processes.size, self.processes.rank, len(labeled)
        mine = list(range(count * rank // size, count * (rank + 1) // size))
        if any(labeled[i] for i in mine):
            return mine, 1.0
        return [next((i for i, has in enumerate(labeled) if has), 0)], 0.0

    def whole_loss(self, total: Tensor, units: float, weight: float) -> tuple[Tensor, float]:
        """Loss and units of a batch from those of this process's share.

        The loss has the value of all shares together.  FSDP2 averages gradients over processes, so the gradient is
        made larger by their number.
        """
        share = total * (weight * self.processes.size)
        value = torch.stack([total.detach().double() * weight, total.new_tensor(units * weight).double()])
        value = self.sum_(value)
        return share + (value[0].to(share.dtype) - share.detach()), float(value[1])


def refuse_partitioned(model: nn.Module) -> None:
    """Raise where the weights are not those that a process can measure.

    Raises:
        ValueError: DeepSpeed ZeRO-3, the first FSDP, tensor parallelism, or a mesh of several dimensions.
    """
    remedy = "Gather the weights into one process, or shard them with FSDP2 (fully_shard), and score that model."
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id"):
            raise ValueError(
                f"The parameter {name!r} is partitioned by DeepSpeed ZeRO-3, whose weights cannot be displaced and put "
                f"back from outside. {remedy}"
            )
    for module in model.modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise ValueError(
                "The model is wrapped in FullyShardedDataParallel (FSDP1), which flattens weights so that they lose "
                f"their names and shapes. {remedy}"
            )


def _offset(name: str, parameter: Any) -> int:
    mesh, placements = parameter.device_mesh, parameter.placements
    if mesh.ndim != 1 or not placements[0].is_shard(0):
        raise ValueError(
            f"The parameter {name!r} is placed as {tuple(map(str, placements))} on a mesh of {mesh.ndim} dimension(s): "
            "expected FSDP2's shards along the first dimension of the weight, on a mesh of one dimension. Shard it "
            "with fully_shard(model) alone, without tensor parallelism or replication."
        )
    rows, width = parameter.shape[0], parameter.numel() // max(parameter.shape[0], 1)
    per_process = -(-rows // mesh.size())  # as torch.chunk deals them out
    return min(mesh.get_local_rank() * per_process, rows) * width
