"""What all tests share: no network, nothing written outside a temporary folder."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# before anything imports the libraries, which read these once
CACHE = tempfile.mkdtemp(prefix="hf_pacgen-tests-")
os.environ["HF_HOME"] = CACHE
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # a failed test's folder stays readable
os.environ["TMPDIR"] = tempfile.tempdir = CACHE  # what training runs and launched processes write goes with it
for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
    os.environ[name] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in tiny models, more threads wait for each other longer than they work
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads and forked processes do not mix
_PROCESS = os.getpid()

import pytest  # noqa: E402

# imports DeepSpeed, and is run by a test
collect_ignore = ["deepspeed_runs.py"]

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@atexit.register
def _remove_cache() -> None:
    if os.getpid() == _PROCESS:  # not when a forked process of a test ends
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the larger data sets, which lies beside the repository where there is one."""
    if not SHARED.is_dir():
        pytest.skip("the data sets of ../shared/data are not here")
    return SHARED
