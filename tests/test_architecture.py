"""The plan of the house: no arrow points up, one façade, and no room too large."""

from __future__ import annotations

import ast
from pathlib import Path

import hf_pacgen

PACKAGE = Path(hf_pacgen.__file__).parent
PURE, CURVATURE, NOISE, SHELL = range(4)
FLOORS = {
    "record": PURE,
    "score": PURE,
    "config": PURE,
    "settings": PURE,
    "sharpness_config": PURE,
    "noise": NOISE,
    "noise.base": PURE,
    "noise.distributions": PURE,
    "noise.random_bits": PURE,
    "noise.scale": PURE,
    "noise.truncation": PURE,
    "bounds": SHELL,
    "bounds.binary_kl": PURE,
    "bounds.certified": PURE,
    "bounds.pac_bayes": PURE,
    "curvature": CURVATURE,
    "processes": CURVATURE,
    "sharding": CURVATURE,
}


def floor(module: str) -> int:
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in FLOORS:
            return FLOORS[".".join(parts[:end])]
    return SHELL


def modules() -> list[tuple[str, ast.Module]]:
    paths = sorted(p for p in PACKAGE.rglob("*.py") if "evaluate_module" not in p.parts)
    return [(".".join(p.relative_to(PACKAGE).with_suffix("").parts), ast.parse(p.read_text())) for p in paths]


def test_no_arrow_points_up() -> None:
    rooms = {name for name, _ in modules()}
    for name, tree in modules():
        if name == "__init__":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_pacgen."):
                package = (node.module or "").removeprefix("hf_pacgen.")
                for target in {
                    f"{package}.{a.name}" if f"{package}.{a.name}" in rooms else package for a in node.names
                }:
                    assert floor(target) <= floor(name), f"{name} imports {target}, which lies above it"


def test_only_one_room_talks_to_accelerate() -> None:
    for name, tree in modules():
        if floor(name) < SHELL and name != "processes":
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom):
                    module = node.module or ""
                    assert not module.startswith(("torch.distributed.", "accelerate.")), f"{name} imports {module}"


def test_functions_and_files_stay_small() -> None:
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                size = (node.end_lineno or 0) - node.lineno + 1
                assert size <= 80, f"{name}.{node.name} has {size} lines"
            assert not isinstance(node, ast.Assert), f"{name}: assert in the package"
    for path in PACKAGE.rglob("*.py"):
        assert path.read_text().count("\n") <= 400, path


def test_the_facade_has_what_it_names() -> None:
    assert len(hf_pacgen.__all__) == len(set(hf_pacgen.__all__)) <= 25
    for name in hf_pacgen.__all__:
        assert hasattr(hf_pacgen, name), name
