"""Write ``golden.json`` from the code of this checkout.

    python tests/golden/record.py            # all cases, about a minute
    python tests/golden/record.py shards/    # only those whose name begins so; the others stay

Record on purpose only: when a number is meant to change, or when torch or the machine has changed and the code that
was recorded last still gives the numbers that it gave.  Say in the commit which numbers changed, and why.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden.json"


def record(prefix: str = "") -> None:
    from golden.cases import GROUPS, one_process, run_case, two_processes
    from golden.values import Stored, environment, written

    def results() -> Iterator[tuple[str, Stored]]:
        for name, case in one_process().items():
            if name.startswith(prefix):
                yield name, run_case(case)
        for group in GROUPS:
            if f"{group}/".startswith(prefix) or prefix.startswith(f"{group}/"):
                yield from two_processes(group).items()

    kept = json.loads(GOLDEN.read_text())["cases"] if prefix else {}
    GOLDEN.write_text(written({**environment(), "cases": {**kept, **dict(results())}}))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, as in the tests
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[name] = "1"
    sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]
    record(*sys.argv[1:])
