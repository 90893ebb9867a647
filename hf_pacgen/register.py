"""Makes ``evaluate.load("pacgen")`` find the metric of the installed package.

``evaluate`` has no entry points.  It asks the hub for a Space of that name and otherwise takes the latest copy in its
cache of modules, so that cache gets a module of a few lines which imports the class from this package: it cannot go
stale.  Standard library only, since ``import hf_pacgen`` runs this and importing ``evaluate`` takes seconds.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
import time
from pathlib import Path

__all__ = ["metric_path", "register", "register_on_import"]

logger = logging.getLogger(__name__)

NO_REGISTER = "HF_PACGEN_NO_REGISTER"  # set to 1, it keeps `import hf_pacgen` from writing into the cache
NAME = "pacgen"
NAMESPACE = ("evaluate_modules", "metrics", f"evaluate-metric--{NAME}")
# evaluate looks for folders with a name of 64 characters; ours is always the same, so an upgrade leaves no copy
VERSION_FOLDER = hashlib.sha256(b"hf_pacgen").hexdigest()
MODULE = '''\
"""evaluate.load("pacgen"). Written by hf_pacgen, and made again by `hf-pacgen register`; needs hf_pacgen installed."""

from hf_pacgen.evaluate_module.pacgen.pacgen import PACGen  # noqa: F401
'''
UNWRITABLE = (
    'evaluate.load("pacgen") may not find the metric: %s cannot be written (%s). Use evaluate.load('
    "hf_pacgen.metric_path()), or set HF_HOME to a folder that can be written; %s=1 turns this off."
)


def metric_path() -> str:
    """The folder of the metric: ``evaluate.load(metric_path())`` needs no registration and no network."""
    return str(Path(__file__).parent / "evaluate_module" / NAME)  # evaluate.load takes no Path


def register() -> Path | None:
    """Make ``evaluate.load("pacgen")`` work in this and all later processes that share the cache.

    The cache is where ``evaluate`` has it: ``HF_MODULES_CACHE``, or else ``modules`` in ``HF_HOME``, or else
    ``huggingface/modules`` in ``XDG_CACHE_HOME``.  Processes may do this at the same time: every file appears whole.

    Returns:
        The registered module; None, with a line in the log, where the cache cannot be written.
    """
    module = _modules_cache().joinpath(*NAMESPACE, VERSION_FOLDER, f"{NAME}.py")
    try:
        if not (module.is_file() and module.read_bytes() == MODULE.encode()):
            _write(module)
        _make_latest(module)
    except OSError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # one line a machine, not one a process
            logger.warning(UNWRITABLE, module, error.strerror or error, NO_REGISTER)
        return None
    return module


def register_on_import() -> None:
    """:func:`register`, unless ``HF_PACGEN_NO_REGISTER`` says otherwise."""
    if os.environ.get(NO_REGISTER, "").strip().lower() in ("", "0", "false", "no", "off"):
        register()


def _modules_cache() -> Path:
    # as in evaluate.config, which also leaves a ~ in HF_MODULES_CACHE as it is
    shared = os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    home = os.path.expanduser(os.environ.get("HF_HOME", shared))
    return Path(os.environ.get("HF_MODULES_CACHE", os.path.join(home, "modules")))


def _write(module: Path) -> None:
    # the folder is published as a whole: evaluate fails on one of such a name without its module
    folder = module.parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    for package in folder.parents[: len(NAMESPACE)]:  # as evaluate makes them
        (package / "__init__.py").touch()
    # not tempfile, whose files only their owner may read: a cache can be shared between users
    temporary = folder.with_name(f".{os.getpid()}.{threading.get_ident()}.tmp")
    temporary.mkdir(exist_ok=True)
    try:
        (temporary / "__init__.py").touch()
        (temporary / module.name).write_bytes(MODULE.encode())
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():
                raise
            os.replace(temporary / module.name, module)  # another process was first, or this is an upgrade
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info('Registered evaluate.load("pacgen") as %s.', module)


def _make_latest(module: Path) -> None:
    # offline, evaluate takes the copy that was changed last: a Space downloaded long ago must not win
    others = (folder / module.name for folder in module.parents[1].iterdir() if len(folder.name) == len(VERSION_FOLDER))
    latest = max((other.stat().st_mtime for other in others if other != module and other.is_file()), default=0.0)
    if latest >= module.stat().st_mtime:
        now = max(time.time(), latest + 1)
        os.utime(module, (now, now))
