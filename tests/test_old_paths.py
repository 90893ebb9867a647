"""What README and docs of release 0.1 imported is still there, and says where it has gone."""

from __future__ import annotations

import importlib
import sys

import pytest

from hf_pacgen.old_paths import OLD_PATHS, keep_working

SHOWN = [
    ("hf_pacgen.bounds.pac_bayes", "kl_bound"),
    ("hf_pacgen.bounds.certificate", "certify"),
    ("hf_pacgen.comparison", "measure_all"),
    ("hf_pacgen.comparison", "rank_correlation"),
    ("hf_pacgen.inputs", "InputError"),
    ("hf_pacgen.landscape", "hessian_spectrum"),
    ("hf_pacgen.landscape", "loss_slice"),
    ("hf_pacgen.landscape", "mean_loss"),
    ("hf_pacgen.measure", "hessian_diagonal"),
    ("hf_pacgen.plots", "plot_by_module"),
    ("hf_pacgen.plots", "save_figure"),
    ("hf_pacgen.score", "PACGenResult"),
    ("hf_pacgen.score", "pacgen_score"),
    ("hf_pacgen.sharpness", "Sharpness"),
    ("hf_pacgen.sharpness", "worst_case_sharpness"),
    ("hf_pacgen.sharpness_config", "SpectrumConfig"),
]
UNMOVED = [
    ("hf_pacgen.config", "ScoreConfig"),
    ("hf_pacgen.config", "NoiseConfig"),
    ("hf_pacgen.curvature.diagonal", "DiagonalEstimate"),
    ("hf_pacgen.curvature.lipschitz", "LipschitzEstimate"),
    ("hf_pacgen.curvature.spectrum", "Spectrum"),
    ("hf_pacgen.training.callback", "PACGenCallback"),
    ("hf_pacgen.training.trainer", "PACGenTrainer"),
]


@pytest.mark.parametrize(("module", "name"), SHOWN)
def test_an_old_path_leads_to_the_new_place(module: str, name: str) -> None:
    old = importlib.import_module(module)
    with pytest.warns(DeprecationWarning, match=f"{module}.{name} has moved: import it from hf_pacgen"):
        found = getattr(old, name)
    assert found is getattr(importlib.import_module(found.__module__), name)


@pytest.mark.parametrize(("module", "name"), UNMOVED)
def test_these_are_where_they_were(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


def test_every_place_is_there() -> None:
    for places in OLD_PATHS.values():
        for place in places:
            importlib.import_module(f"hf_pacgen.{place}")


def test_what_was_never_there_is_not_there_now() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute .loss_slices."):
        importlib.import_module("hf_pacgen.landscape").loss_slices  # noqa: B018
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("hf_pacgen.bounds.no_such_module")


def test_finders_do_not_pile_up() -> None:
    before = len(sys.meta_path)
    keep_working()
    assert len(sys.meta_path) == before
