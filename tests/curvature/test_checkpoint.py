"""A run that is killed, at any moment and in any way, goes on to the numbers of one that was not."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import random
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import tiny
import torch
from accelerate import Accelerator
from launch import on_two_processes
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from tqdm.auto import tqdm

from hf_pacgen import ScoreConfig, hessian_diagonal, pacgen
from hf_pacgen.curvature.checkpoint import TERMINATED
from hf_pacgen.curvature.tensor_file import write_tensors

TWICE = ScoreConfig(passes=2)
PARTS = tiny.split(tiny.examples("bert", 23), *[2] * 11, 1)
SUMS = ("score", "kl_complexity", "loss", "hessian_trace", "hessian_trace_stderr", "hessian_lipschitz")


def model(pause: float = 0.0, stop_at: int = 0) -> nn.Module:
    """A small model whose forward passes can be slow, or fail in the end."""
    made, calls = tiny.make("bert", dtype=torch.float32), 0

    def before(*args: Any) -> None:
        nonlocal calls
        calls += 1
        time.sleep(pause)
        if calls == stop_at:
            raise InterruptedError("stop here")

    made.register_forward_pre_hook(before)
    return made


def score(folder: Path | None, *, data: Any = PARTS, config: ScoreConfig = TWICE, every: int = 3, **how: Any) -> Any:
    made = how.pop("made", None) or model(**{k: how.pop(k) for k in ("pause", "stop_at") if k in how})
    result = pacgen(
        made, data, config=config, progress=False, checkpoint_dir=folder, checkpoint_every=every, **how
    ).to_dict()
    del result["seconds"]
    return result


def interrupted(folder: Path, stop_at: int = 80, **how: Any) -> None:
    with pytest.raises(InterruptedError, match="stop here"):
        score(folder, stop_at=stop_at, **how)


def forked(work: Callable[[], Any]) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process  # type: ignore[return-value]


def wait_for_file(folder: Path) -> None:
    """Wait until a run has made its first file, however busy the machine is."""
    end = time.monotonic() + 60
    while not list(folder.glob("*.safetensors")) and time.monotonic() < end:
        time.sleep(0.01)


def batches_done(folder: Path) -> int:
    return sum(len(load_file(path)["done"]) for path in folder.glob("*.safetensors"))


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return score(None)


@pytest.fixture(scope="module")
def allowed(expected: dict[str, Any]) -> dict[str, float]:
    """How far a sum that was added up in another order may lie off."""
    diagonal = hessian_diagonal(model(), PARTS, config=TWICE, progress=False)
    # The sums are of float32, and each addition rounds by its own size.  In the trace entries of both signs cancel to a
    # thirtieth of their size, so what rounding is a part of is the sum of their absolute values.
    sizes = expected | {"hessian_trace": sum(value.abs().sum().item() for value in diagonal.values.values())}
    return {key: 1e-6 * abs(sizes[key]) for key in SUMS}


# ---------------------------------------------------------------------------------------------------- killed


def test_killed_at_five_random_points(tmp_path: Path) -> None:
    config = ScoreConfig(passes=2, lipschitz_directions=0)
    moments, progress = random.Random(0), []
    for _ in range(5):
        child = forked(lambda: score(tmp_path, pause=0.03, every=1, config=config))
        wait_for_file(tmp_path)
        child.join(timeout=moments.uniform(0.1, 0.5))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        progress.append(batches_done(tmp_path))
    assert progress == sorted(progress) and 0 < progress[-1] < 24
    assert score(tmp_path, config=config) == score(None, config=config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("after", [False, True])
def test_killed_while_saving(
    step: str, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, Any]
) -> None:
    original, calls = getattr(os, step), 0

    def kill(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        out = original(*args) if after or calls < 3 else None
        if calls >= 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return out

    with monkeypatch.context() as patch:
        patch.setattr(os, step, kill)
        child = forked(lambda: score(tmp_path))
        child.join()
    assert child.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert score(tmp_path) == expected
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [{"estimator": "exact"}, {"standard_error": True, "passes": 3}, {"rho": 0.3}])
def test_every_estimator_goes_on(settings: dict[str, Any], tmp_path: Path) -> None:
    config = ScoreConfig(**settings, lipschitz_directions=0)
    # after the first looks, between the first batch and the last
    interrupted(tmp_path, 14 if settings.get("estimator") == "exact" else 18, config=config, every=1, data=PARTS[:4])
    assert batches_done(tmp_path) > 0
    assert score(tmp_path, config=config, data=PARTS[:4]) == score(None, config=config, data=PARTS[:4])


def test_embeddings_go_on_by_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = tiny.bert(hidden_size=64, vocab_size=999).eval()  # wide enough for probes of single rows
    calls = 0

    def stop(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 45:
            raise InterruptedError("stop here")

    made.register_forward_pre_hook(stop)
    config = ScoreConfig(passes=2, lipschitz_directions=0)
    with pytest.raises(InterruptedError, match="stop here"):
        score(tmp_path, made=made, config=config, every=1)
    assert 6 < batches_done(tmp_path) < 24
    assert score(tmp_path, made=made, config=config) == score(None, made=made, config=config)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    interrupted(tmp_path)
    done, calls = batches_done(tmp_path), 0
    made = model()

    def count(*args: Any) -> None:
        nonlocal calls
        calls += 1

    made.register_forward_pre_hook(count)
    score(tmp_path, made=made)
    again = calls
    score(None, made=made)
    assert done >= 6 and calls - again >= again + 2 * done


def test_the_bar_goes_on_from_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interrupted(tmp_path)
    done = batches_done(tmp_path)
    with patch("hf_pacgen.measures.session.tqdm", partial(tqdm, mininterval=0, miniters=1)):
        pacgen(model(), PARTS, config=TWICE, checkpoint_dir=tmp_path, checkpoint_every=3)
    shown = capsys.readouterr().err
    assert done > 6 and "| 24/24 [" in shown
    assert f"Hessian diagonal: {done / 24:4.0%}|" in shown.replace("\r", "\n")


def test_data_that_is_drawn_at_random_is_the_same_again(tmp_path: Path) -> None:
    examples = [{k: v[i] for k, v in tiny.examples("bert", 24).items()} for i in range(24)]

    def loader() -> Any:
        return torch.utils.data.DataLoader(examples, batch_size=2, shuffle=True)  # type: ignore[arg-type]

    interrupted(tmp_path, data=loader())
    assert score(tmp_path, data=loader()) == score(None, data=loader())


def test_sigterm_saves_and_says_so(tmp_path: Path, expected: dict[str, Any]) -> None:
    def work() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what measures the coverage of tests has a handler of its own
        score(tmp_path, pause=0.03, every=1000)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    child = forked(work)
    wait_for_file(tmp_path)
    child.join(timeout=0.2)
    child.terminate()
    child.join(timeout=30)
    assert child.exitcode == TERMINATED == 143
    assert 0 < batches_done(tmp_path) < 24
    assert score(tmp_path) == expected


# ---------------------------------------------------------------------------------------------------- the disk


def test_a_full_disk_leaves_the_earlier_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(tmp_path)
    before = batches_done(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.WARNING):
        interrupted(tmp_path, 15, every=1)
    assert "could not be saved (No space left on device)" in caplog.text
    assert batches_done(tmp_path) == before and len(list(tmp_path.iterdir())) == 1
    assert score(tmp_path, every=1) == expected  # the run itself goes on


def test_a_file_that_may_not_grow(tmp_path: Path, expected: dict[str, Any]) -> None:
    interrupted(tmp_path, every=1)
    before = batches_done(tmp_path)

    def limited() -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        interrupted(tmp_path, 15, every=1)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)  # what measures the coverage of tests writes at the end

    child = forked(limited)
    child.join()
    assert child.exitcode == 0 and batches_done(tmp_path) == before
    assert score(tmp_path) == expected


def test_no_room_at_the_start_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"checkpoint_dir .*file' is a file: expected a folder"):
        score(tmp_path / "file")
    with pytest.raises(ValueError, match=r"checkpoint_dir .*inside' cannot be written to: .*Name a folder with room"):
        score(tmp_path / "file" / "inside")


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_a_truncated_file_is_refused(keep: int, tmp_path: Path) -> None:
    interrupted(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{path.name}' is damaged and cannot be read.*or delete the folder's files"):
        score(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path)
    (path,) = tmp_path.iterdir()
    write_tensors(path, load_file(path), {"format": 99})
    with pytest.raises(ValueError, match="another version of hf_pacgen: expected format 3, got 99"):
        score(tmp_path)


@pytest.mark.parametrize("every", [0, 1.5, True])
def test_checkpoint_every_is_checked(every: Any) -> None:
    with pytest.raises(ValueError, match="checkpoint_every must be an integer of at least 1"):
        score(None, every=every)


# ---------------------------------------------------------------------------------------------- another run


def changed(what: str) -> dict[str, Any]:
    made = tiny.make("bert", dtype=torch.float32)
    parameters = dict(made.named_parameters())
    if what == "weights":
        parameters["classifier.bias"].data[1] += 1e-6
    elif what == "frozen":
        parameters["classifier.bias"].requires_grad_(False)
    elif what == "buffer":
        made.register_buffer("running", torch.ones(2))
    elif what == "class":
        made = tiny.make("vit", dtype=torch.float32)
    other = [dict(part) for part in PARTS]
    if what == "a later batch":
        other[1]["labels"] = (other[1]["labels"] + 1) % 3
    changes: dict[str, dict[str, Any]] = {
        "class": {"made": made, "data": tiny.split(tiny.examples("vit", 23, dtype=torch.float32), *[2] * 11, 1)},
        "seed": {"config": ScoreConfig(passes=2, seed=1)},
        "length": {"data": PARTS[:-1]},
        "first batch": {"data": [PARTS[1], *PARTS[1:]]},
        "a later batch": {"data": other},
        "loss": {"loss_fn": lambda model, batch: (model(**batch).loss, 1)},
    }
    return changes.get(what, {"made": made})


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("seed", r"the setting seed \(0 in the checkpoint and 1 now\)"),
        ("weights", "the values of classifier.bias"),
        ("frozen", "the form of classifier.bias .*trainable in the checkpoint"),
        ("buffer", r"the form of running \(only now\), the values of the buffer running \(only now\)"),
        ("class", r"class of the model \(BertForSequenceClassification in the checkpoint and ViTFor.* and \d+ more"),
        ("length", r"length of the data \(12 in the checkpoint and 11 now\)"),
        ("first batch", "the values of the first batch of the data"),
        ("a later batch", "batch 1 of the data"),
        ("loss", r"the loss \(cross-entropy in the checkpoint and .*lambda> now\)"),
    ],
)
def test_the_state_of_another_run_is_refused(what: str, named: str, tmp_path: Path) -> None:
    interrupted(tmp_path)
    before = batches_done(tmp_path)
    with pytest.raises(ValueError, match=f"is of another run. These differ: .*{named}.*Name another checkpoint_dir"):
        score(tmp_path, **changed(what))
    assert batches_done(tmp_path) == before


class Stream:
    """Batches whose number is not known beforehand."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[Any]:
        return iter(self.parts)


def test_a_stream_that_has_become_shorter_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path, data=Stream(PARTS), every=1)
    with pytest.raises(ValueError, match=r"These differ: batch \d of the data \(only in the checkpoint\)"):
        score(tmp_path, data=Stream(PARTS[:1]))


def test_sums_of_other_parameters_are_refused(tmp_path: Path) -> None:
    interrupted(tmp_path)
    (path,) = tmp_path.iterdir()
    with safe_open(path, framework="pt") as file:
        metadata = {key: json.loads(value) for key, value in file.metadata().items()}
    sums = load_file(path)
    gone = sorted(sums.keys() - {"done"})[0]
    del sums[gone]
    write_tensors(path, sums, metadata)
    with pytest.raises(ValueError, match=rf"These differ: the sums \['{re.escape(gone)}'\]. Name another"):
        score(tmp_path)


# ---------------------------------------------------------------------------------------------- many processes


def _share(folder: Path, expected: dict[str, Any], allowed: dict[str, float], stop_at: int = 0) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    try:
        result = score(folder, accelerator=accelerator, stop_at=stop_at, every=1)
    except (InterruptedError, RuntimeError) as error:
        if not stop_at or "stop here" not in str(error):
            raise
    else:
        for key, tolerance in allowed.items():
            if abs(result[key] - expected[key]) > tolerance:
                raise ValueError(f"{key} is {result[key]}, not {expected[key]}")
    accelerator.wait_for_everyone()


def together(folder: Path, *args: Any) -> None:
    on_two_processes(_share, folder, *args)


def test_two_processes_go_on_as_two_or_as_one(
    tmp_path: Path, expected: dict[str, Any], allowed: dict[str, float]
) -> None:
    together(tmp_path, {}, {}, 40)
    done = batches_done(tmp_path)
    assert 0 < done < 24 and len(list(tmp_path.iterdir())) == 2
    result = score(tmp_path)
    for key in SUMS:
        assert result[key] == pytest.approx(expected[key], rel=0, abs=allowed[key]), key
    assert list(tmp_path.iterdir()) == []
    together(tmp_path, {}, {}, 40)
    together(tmp_path, expected, allowed)
    assert list(tmp_path.iterdir()) == []


def test_one_process_goes_on_as_two(tmp_path: Path, expected: dict[str, Any], allowed: dict[str, float]) -> None:
    interrupted(tmp_path)
    together(tmp_path, expected, allowed)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_of_several_is_named(tmp_path: Path) -> None:
    together(tmp_path, {}, {}, 40)
    next(tmp_path.glob("*-00001-of-00002*")).unlink()
    with pytest.raises(ValueError, match=r"is incomplete: it is of 2 processes, and only .*00000-of-00002"):
        score(tmp_path)


def _apart(base: Path) -> None:
    rank = Accelerator(cpu=True).process_index
    message = rf"folder that all processes share: process {rank} does not see .*0000{1 - rank}-of-00002.*shared file"
    with pytest.raises(ValueError, match=message):
        score(base / str(rank), accelerator=Accelerator(cpu=True))


def test_folders_that_are_not_shared_are_refused(tmp_path: Path) -> None:
    on_two_processes(_apart, tmp_path)


def test_only_the_score_is_saved() -> None:
    with pytest.raises(TypeError, match="checkpoint_dir"):
        hessian_diagonal(model(), PARTS, checkpoint_dir="x")  # type: ignore[call-arg]
