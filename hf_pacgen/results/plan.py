"""What a score will take, said beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_pacgen.results.base import Result
from hf_pacgen.results.fields import other


@dataclass(frozen=True, kw_only=True)
class Plan(Result):
    """What a score of a model will take: passes, memory, bytes on the wire and time.

    A forward pass is a call of the model, a backward pass one way through the graph of its loss: a product by
    finite differences is two of each, one by reverse over reverse one forward and two backward passes.
    """

    kind, remake = "plan", "Plan again"

    num_parameters: int = other("m, the trainable parameters")
    num_all_parameters: int = other("parameters, the frozen ones among them")
    num_buffers: int = other("elements of the model's buffers", default=0)
    trainable_bytes: int = other("bytes of the trainable parameters")
    parameter_bytes: int = other("bytes of all parameters")
    buffer_bytes: int = other("bytes of the buffers", default=0)
    num_batches: int = other("batches of a pass over the data")
    num_examples: int = other("examples of a pass over the data")
    sweeps: int = other("passes over the data for the diagonal", default=1)
    estimator: str = other("estimator of the Hessian diagonal that will be used")
    hvp_method: str | None = other("method of the Hessian-vector products; None where there are none", default=None)
    num_hvps: int = other("Hessian-vector products of a batch, of ρ and of the diagonal", default=0)
    passes: dict[str, dict[str, int]] = other(
        "forward and backward passes of a batch by phase: 'checks' of the first batch, 'rho', 'diagonal', and "
        "'repeats', an estimate of the passes of ρ whose steps prove too long"
    )
    forwards: int = other("forward passes of a batch in all")
    backwards: int = other("backward passes of a batch in all")
    flops: float | None = other("floating-point operations in all, of matrix products and attention", default=None)
    layouts: tuple[dict[str, Any], ...] = other(
        "for each number of processes asked for, with the weights 'copied' to each and 'sharded' over them by FSDP2: "
        "'peak_bytes' of a process's tensors (and 'memory', the peak of each phase), 'wire_bytes' that it sends, "
        "'forwards' and 'backwards' of the busiest, 'seconds', and 'refused', why there would be no score"
    )
    seconds: float | None = other("predicted wall-clock time of one process; None where it is not known", default=None)
    status: tuple[str, ...] = other("what limits the figures, in sentences", default=())
    config: dict[str, Any] = other("the settings", default=dict)

    def layout(self, processes: int = 1, weights: str = "copied") -> dict[str, Any]:
        """The figures of one number of processes.

        Raises:
            KeyError: it was not asked for.
        """
        for found in self.layouts:
            if found["processes"] == processes and found["weights"] == weights:
                return found
        known = ", ".join(f"{one['processes']} {one['weights']}" for one in self.layouts)
        raise KeyError(
            f"The plan has no layout of {processes} processes with weights {weights!r}: expected one of {known}. "
            "Plan with processes=..."
        )
