"""The plan of the house: every module has a floor, no arrow points up, one façade, and no room too large."""

from __future__ import annotations

import ast
from pathlib import Path

import hf_pacgen

PACKAGE = Path(hf_pacgen.__file__).parent
TESTS = Path(__file__).parent
LARGE = 60
"""Lines beyond which a module must have tests under its own name."""
FLOORS: dict[str, str] = {
    # from the ground up; a module imports from its own folder and from those above it in this list
    "": "errors facts files old_paths register",
    "maths": "arrays binary_kl bounded_losses calibration certified_bound counter_rng distributions held_out_bounds "
    "lanczos likelihoods noise_scale pac_bayes progressive rank_correlation score score_errors selective student "
    "truncation",
    "config": "certificate noise prediction promise recipes score settings sharpness spectrum",
    "results": "base certificate diagonal fields landscape lipschitz measures noisy_predictions pacgen plan promise "
    "relative_sharpness sharpness spectrum summary worst_case",
    "show": "advice cards.contents cards.document cards.update plots.gap plots.landscape plots.promise "
    "plan plots.reliability plots.runs plots.score plots.spectrum plots.style tables wording",
    "distributed": "deepspeed processes shards wire",
    "model": "adapters ctc dequantized embeddings fingerprint parameters precision run_state state storage traces",
    "data": "batches checks checksums collation contents inspection likelihoods losses objective outputs own_loss "
    "recognition sharded_objective units",
    "curvature": "ascent checkpoint checks diagonal.blend diagonal.estimate diagonal.exact diagonal.gauss_newton "
    "diagonal.hutchinson diagonal.replicates diagonal.sampled_labels diagonal.sums diagonal.through_outputs "
    "displacement examination hvp lipschitz operators pass_counts peak_memory run_identity "
    "spectrum tensor_file weight_space",
    "noise": "auto_scale curvature_tracker directions frozen layout perturbation perturbed products rows",
    "measures": "comparison hessian landscape origin pacgen plan ranking rehearsal relative_sharpness session "
    "sharpness spectrum worst_case",
    "certify": "certify draws error_rate held_out likeness posterior priors prints records refinement search splits "
    "validity",
    "promises": "examine expected how losses noisy overlap promise rules selection selective trained visit",
    "predictions": "levels noisy passes reading size tally",
    "training": "arguments averages callback.callback callback.guard clipping consistency estimates follow hooks "
    "micro_batch noise_state noisy_step passes predictions run_facts scores trainer trainer_loss",
    "command_line": "card certify compare comparison_file comparison_table completion flags inputs.adapters "
    "inputs.chat inputs.choosing inputs.columns inputs.data inputs.examples inputs.fingerprint inputs.formats "
    "inputs.labels inputs.language inputs.load inputs.models inputs.other_tasks inputs.pictures inputs.processors "
    "inputs.recorded inputs.runs inputs.sound_folder inputs.sounds inputs.tasks inputs.texts inputs.weights main "
    "parser predict printing promise promise_how promise_table quiet register run_options score sharpness suggestions",
    "evaluate_module": "pacgen.app pacgen.pacgen",
}
"""Every module of every folder, by name: a new file needs a decision where it belongs."""
ABOVE_ALL = {"__init__", "__main__"}
"""The façade and ``python -m hf_pacgen``."""
APART = [("certify", "training"), ("promises", "training")]
"""Folders that know nothing of each other."""


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] != "__init__" or len(parts) == 1:
            found[".".join(parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()
PLACES = {f"{folder}.{name}".lstrip("."): folder for folder, names in FLOORS.items() for name in names.split()}
ORDER = {folder: floor for floor, folder in enumerate(FLOORS)}


def folder_of(target: str) -> str | None:
    """The folder of a module of the package that is imported; None for the package itself."""
    return PLACES.get(target, target.partition(".")[0] if target.partition(".")[0] in ORDER else None)


def test_every_module_has_a_floor() -> None:
    assert set(MODULES) - ABOVE_ALL == set(PLACES)


def test_no_arrow_points_up() -> None:
    for name, tree in MODULES.items():
        if name in ABOVE_ALL:
            continue
        for node in ast.walk(tree):
            targets = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            targets += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for target in targets:
                if target.partition(".")[0] != "hf_pacgen":
                    continue
                there, here = folder_of(target.partition(".")[2]), PLACES[name]
                if there is None:
                    assert here == "command_line", f"{name} imports the façade, which imports everything"
                    continue
                assert ORDER[there] <= ORDER[here], f"{name} imports {target}, which lies above it"
                assert not any({here, there} == set(pair) for pair in APART), f"{name} imports {target}"


def test_the_ground_floor_imports_nothing_of_the_house() -> None:
    for name in FLOORS[""].split():
        text = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
        imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
        assert not any((node.module or "").startswith(("hf_pacgen", "torch", "transformers")) for node in imports), name


def test_only_one_folder_talks_to_accelerate() -> None:
    allowed = ("distributed", "training", "command_line")
    for name, tree in MODULES.items():
        if name not in ABOVE_ALL and PLACES[name] not in allowed:
            for node in ast.walk(tree):
                module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
                assert not module.startswith(("torch.distributed", "accelerate.")), f"{name} imports {module}"


def test_functions_and_files_stay_small() -> None:
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                size = (node.end_lineno or 0) - node.lineno + 1
                assert size <= 80, f"{name}.{node.name} has {size} lines"
            assert not isinstance(node, ast.Assert), f"{name}: assert in the package"
    for path in PACKAGE.rglob("*.py"):
        assert path.read_text(encoding="utf-8").count("\n") <= 400, path


def test_the_facade_has_what_it_names() -> None:
    assert len(hf_pacgen.__all__) == len(set(hf_pacgen.__all__)) <= 34
    for name in hf_pacgen.__all__:
        assert hasattr(hf_pacgen, name), name


def test_every_large_module_has_its_tests() -> None:
    missing = []
    for name, path in ((name, PACKAGE.joinpath(*name.split(".")).with_suffix(".py")) for name in MODULES):
        if path.read_text(encoding="utf-8").count("\n") <= LARGE:
            continue
        *folders, module = [PACKAGE.name] if name == "__init__" else name.split(".")
        places = [TESTS.joinpath(*folders, f"test_{module}.py")]
        if len(folders) > 1:  # a package within a folder may have one file for all its modules
            places.append(TESTS.joinpath(*folders[:-1], f"test_{folders[-1]}.py"))
        if not any(place.is_file() for place in places):
            missing.append(f"{name}: no {places[0].relative_to(TESTS.parent)}")
    assert not missing, "\n".join(missing)
