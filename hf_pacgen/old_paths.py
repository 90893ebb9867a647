"""Import paths of release 0.1 that its pages showed, and where their names are now.  Standard library only.

``from hf_pacgen.landscape import loss_slice`` goes on working, with a DeprecationWarning that names the new place.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import warnings
from types import ModuleType
from typing import Any

__all__ = ["OLD_PATHS", "keep_working"]

PACKAGE = __name__.partition(".")[0]
# by the old name within the package, the modules that hold its names now
OLD_PATHS: dict[str, tuple[str, ...]] = {
    "bounds": (),  # was a folder
    "bounds.certificate": ("certify.certify", "results.certificate"),
    "bounds.pac_bayes": ("maths.pac_bayes",),
    "bounds.splits": ("certify.splits",),
    "cards": ("show.cards.update",),
    "cli": ("command_line.main",),
    "comparison": ("measures.comparison", "results.measures", "maths.rank_correlation"),
    "inputs": ("errors",),
    "inputs.errors": ("errors",),
    "landscape": ("measures.landscape", "measures.spectrum", "results.landscape"),
    "measure": ("measures.pacgen", "measures.hessian"),
    "plots": ("show.plots",),
    "report": ("show.tables",),
    "score": ("maths.score", "results.pacgen"),
    "sharpness": ("measures.sharpness", "measures.worst_case", "results.sharpness", "results.worst_case"),
    "sharpness_config": ("config",),
}


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes a module of an old name when somebody asks for it; all others are none of its business."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != PACKAGE or name not in OLD_PATHS:
            return None
        # a folder of old, in which more is looked for
        is_package = any(other.startswith(f"{name}.") for other in OLD_PATHS)
        return importlib.machinery.ModuleSpec(fullname, self, is_package=is_package)

    def exec_module(self, module: ModuleType) -> None:
        def find(name: str) -> Any:
            # the import system asks every module for names such as __path__: no reason to warn
            for place in () if name.startswith("__") else OLD_PATHS[module.__name__.partition(".")[2]]:
                there = importlib.import_module(f"{PACKAGE}.{place}")
                if hasattr(there, name):
                    moved = f"{module.__name__}.{name} has moved: import it from {there.__name__}."
                    warnings.warn(moved, DeprecationWarning, stacklevel=2)
                    return getattr(there, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__getattr__ = find  # type: ignore[method-assign]


def keep_working() -> None:
    """Let the old paths be imported; once is enough."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        # first, or an old folder that holds nothing but __pycache__ would pass for the module
        sys.meta_path.insert(0, _Finder())
