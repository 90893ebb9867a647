"""The pictures of examples/gallery.md: one of every plotting function, of small networks on handwritten digits.

    python examples/gallery.py --output examples/pictures
    python examples/gallery.py --output pictures --smoke  # in seconds

Networks learn 400 digits to the same training loss, the first with the right labels, the others with more and more
wrong ones; the other digits show their gaps.  It takes half a minute.  The two pictures of the toy are those of
examples/toy_landscape.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import HfArgumentParser

from hf_pacgen import ScoreConfig, SharpnessConfig, SpectrumConfig, hessian_diagonal, hessian_spectrum, pacgen
from hf_pacgen.measures.comparison import measure_all
from hf_pacgen.measures.landscape import loss_slice
from hf_pacgen.results.measures import Measures
from hf_pacgen.show.plots import (
    plot_by_module,
    plot_gap,
    plot_hessian_diagonal,
    plot_loss_slice,
    plot_spectral_density,
    save_figure,
)

Batch = dict[str, Tensor]
TRAINING, GOAL = 400, 0.05
"""Number of training images, and the training loss at which a network is done."""
WRONG = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
"""Share of wrong labels in the training images of every run."""


@dataclass
class Arguments:
    """What can be set; see ``--help``."""

    output: str = field(default="examples/pictures", metadata={"help": "Folder for the pictures; it is made."})
    smoke: bool = field(default=False, metadata={"help": "Two hardly trained networks: it shows the way."})


class DigitsMLP(nn.Module):
    """64-48-32-10 with tanh: 5,018 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden1, self.hidden2, self.head = nn.Linear(64, 48), nn.Linear(48, 32), nn.Linear(32, 10)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        scores = self.head(torch.tanh(self.hidden2(torch.tanh(self.hidden1(images)))))
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(scores, labels)}
        return loss | {"logits": scores}


def batches(images: Tensor, labels: Tensor, size: int) -> Iterator[Batch]:
    """Cut into batches."""
    for start in range(0, len(images), size):
        yield {"images": images[start : start + size], "labels": labels[start : start + size]}


def spoil(labels: Tensor, share: float) -> Tensor:
    """Labels, some of them drawn at random."""
    generator = torch.Generator().manual_seed(2)
    wrong = torch.rand(len(labels), generator=generator) < share
    return torch.where(wrong, torch.randint(0, 10, labels.shape, generator=generator), labels)


def train(images: Tensor, labels: Tensor, goal: float) -> DigitsMLP:
    """Plain SGD to the goal."""
    torch.manual_seed(0)
    model = DigitsMLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2000):
        order = torch.randperm(len(images), generator=generator)
        for batch in batches(images[order], labels[order], 32):
            model(**batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            if model(images, labels)["loss"] < goal:
                break
    return model


def main(argv: list[str] | None = None) -> list[Measures]:
    """Train, measure and draw."""
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args=argv)  # type: ignore[arg-type]
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    pixels, targets = load_digits(return_X_y=True)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    images, labels = torch.tensor(pixels / 16, dtype=torch.float32)[order], torch.tensor(targets)[order]
    test = list(batches(images[TRAINING:], labels[TRAINING:], 50))
    score = ScoreConfig(passes=4, lipschitz_directions=4, lipschitz_iterations=8, lipschitz_batches=4)
    score = ScoreConfig(lipschitz_directions=0) if args.smoke else score
    found: list[Measures] = []
    for share in WRONG[:2] if args.smoke else WRONG:
        shown = spoil(labels[:TRAINING], share)
        training = list(batches(images[:TRAINING], shown, 50))
        model = train(images[:TRAINING], shown, 1.0 if args.smoke else GOAL)
        found.append(
            measure_all(
                model,
                training,
                name=f"{share:.0%} wrong",
                test_data=test,
                noise_scale=0.02,
                score=score,
                sharpness=SharpnessConfig(draws=16),
                progress=False,
            )
        )
        print(f"{found[-1].name}: loss {found[-1].loss:.3f}, gap {found[-1].gap:.3f}")
    spectrum = hessian_spectrum(model, training, config=SpectrumConfig(keep_vectors=True), progress=False)
    line = loss_slice(model, training, directions=1, epsilon=0.05, reach=3, progress=False)
    top = spectrum.eigenvectors or ()
    names = [f"along eigenvector {i + 1} (λ = {spectrum.eigenvalues[i]:.2g})" for i in (0, 1)]
    size = 7 if args.smoke else 25
    plane = loss_slice(
        model, training, directions=top[:2], names=names, points=size, epsilon=0.05, reach=4, progress=False
    )
    pictures = {
        "modules": plot_by_module(pacgen(model, training, config=score, progress=False)),
        "hessian_diagonal": plot_hessian_diagonal(hessian_diagonal(model, training, progress=False)),
        "spectral_density": plot_spectral_density(spectrum),
        "loss_line": plot_loss_slice(line),
        "loss_plane": plot_loss_slice(plane),
        "gap": plot_gap(found),
    }
    for name, axes in pictures.items():
        print(f"Written to {save_figure(axes, folder / f'{name}.png', dpi=70)}")
    return found


if __name__ == "__main__":
    main()
