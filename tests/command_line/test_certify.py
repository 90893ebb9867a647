"""``hf-pacgen certify`` as a user meets it, and the examples of certificates."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import saved_models
import torch
from transformers import AutoModelForSequenceClassification

from hf_pacgen.command_line.certify import run as certify_command
from hf_pacgen.errors import InputError
from hf_pacgen.results.certificate import Certificate

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command; get what it printed, on one line."""

    def call(*words: object) -> str:
        capsys.readouterr()
        certify_command([str(word) for word in words])
        return " ".join(re.sub("[│┃]", " ", capsys.readouterr().out).split())

    return call


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pretrained encoder, a classifier fine-tuned from it, and its data."""
    folder = tmp_path_factory.mktemp("certify")
    base = saved_models.bert(folder / "base", head=False)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(folder / "tuned")
    saved_models.tokenizer().save_pretrained(folder / "tuned")
    words = saved_models.WORDS
    rows = [f"{words[i % 12]} {words[i // 12]} movie,{i % 2}" for i in range(144)]
    (folder / "train.csv").write_text("\n".join(["text,label", *rows]))
    return {"base": base, "tuned": folder / "tuned", "data": folder / "train.csv"}


QUICK = ["--no-progress", "--draws", "20", "--eta", "1000"]


def test_certify_prints_and_writes(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "certificate.json"
    out = run(
        files["tuned"],
        "--prior",
        files["base"],
        "--dataset",
        files["data"],
        *QUICK,
        "--output",
        output,
        "--refine-steps",
        2,
    )
    result = Certificate.load(output)
    assert (result.n, result.prior) == (144, "pretrained weights of base") and result.config["refine_steps"] == 2
    assert result.sentence in out and "Certificate of" in out and f"Written to {output}" in out
    for phrase in (
        "KL",
        "price of τ",
        "scale of the prior",
        "bert.encoder.layer.0",
        "centered on 0",
        "Refinement gained",
    ):
        assert phrase in out
    with pytest.warns(UserWarning, match="23 trainable parameters, such as"):
        zero = run(files["tuned"], "--prior", "zero", "--dataset", files["data"], *QUICK, "--parameters", "classifier")
    assert "certified weights" in zero and "34" in zero  # 2 x 16 weights and 2 biases


def test_a_checkpoint_as_prior_needs_a_word(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    prior = tmp_path / "run" / "checkpoint-9"
    shutil.copytree(files["base"], prior)
    (prior / "trainer_state.json").write_text('{"global_step": 9, "epoch": 1.0, "train_batch_size": 16}')
    words = [files["tuned"], "--prior", prior, "--dataset", files["data"], *QUICK]
    with pytest.raises(InputError, match=r"as many examples as these 144.*--prior-is-independent"):
        run(*words)
    for flag in ("--prior-is-independent", "--assume-independent"):
        assert "it counts as independent of these examples, as you say" in run(*words, flag)
    # a score of the same data in the run's folder says that it has seen them
    (tmp_path / "table.csv").write_text(files["data"].read_text())
    run(files["tuned"], "--prior", files["base"], "--dataset", files["data"], *QUICK, "--output", tmp_path / "c.json")
    origin = Certificate.load(tmp_path / "c.json").origin
    (tmp_path / "run/pacgen.json").write_text(json.dumps({"score": 1.0, "origin": origin}))
    with pytest.raises(InputError, match=r"has seen these examples: pacgen\.json"):
        run(*words, "--prior-is-independent")


def test_held_out_examples_have_the_test_set_bound_in_the_table(run: Run, files: dict[str, Path]) -> None:
    words = [files["tuned"], "--prior", "zero", "--dataset", files["data"], *QUICK, "--parameters", "classifier"]
    with pytest.warns(UserWarning, match="are not certified and not in the prior"):
        out = run(*words, "--held-out")
    assert "test-set bound" in out and "(exact (Clopper-Pearson))" in out and "144 held-out examples" in out
    assert "Each holds by itself: choose which to quote before you see them." in out


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([], "--prior is missing: 'zero', or the model before it saw the data"),
        (["--prior", "./nowhere"], r"--prior './nowhere': there is no such folder. Give 'zero'"),
        (["--prior", "no-such-model"], "--prior 'no-such-model' is no folder, and cannot be had from the hub"),
        (["--prior", "{tuned}"], "equals the trained weights, so it depends on the data"),
        (["--prior", "zero", "--delta", "2"], "delta must be less than 1"),
        (["--prior", "zero", "--checkpoint-dir", "kept"], "Unknown --checkpoint-dir: did you mean"),
        (["--prior", "zero", "--prior-scales", "0.1", "-1"], "--prior-scales must be a list of positive"),
        (["--prior", "zero", "--output", "/dev/null/x.json"], "the folder '/dev/null' cannot be made"),
    ],
)
def test_bad_input_is_one_line(run: Run, files: dict[str, Path], words: list[str], match: str) -> None:
    filled = [word.format(**files) for word in words]
    with pytest.raises(InputError, match=match):
        run(files["tuned"], "--dataset", files["data"], *QUICK, *filled)


def test_copies_are_refused(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="144 of the 288 examples equal an earlier one"):
        run(files["tuned"], "--prior", "zero", "--dataset", files["data"], files["data"], *QUICK)


def example(name: str) -> Any:
    return runpy.run_path(str(EXAMPLES / name))["main"]


def test_example_certifies_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    main = example("certificate.py")
    certificates = main(["--smoke", "--output", str(tmp_path)])
    assert certificates["digits"].sentence in capsys.readouterr().out
    assert Certificate.load(tmp_path / "digits.json") == certificates["digits"]
    assert "held out" in certificates["digits"].prior


def test_benchmark_makes_its_table(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = example("benchmarks/certificate.py")(["--smoke", "--only", "mnist-cnn", "--data", str(shared_data)])
    assert row["n"] == 32 and 0 < row["certified"] <= 1 and row["majority_error"] > 0.5
    assert "| MNIST, CNN, prior of half |" in capsys.readouterr().out
