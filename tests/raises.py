"""Is every error of the package raised by a test?  ``make coverage`` asks, after the tests.

python tests/raises.py coverage.json
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path


def never_raised(report: Path) -> list[str]:
    """Places of the ``raise`` statements that no test reached, by the JSON report of coverage."""
    found = []
    for name, lines in json.loads(report.read_text(encoding="utf-8"))["files"].items():
        missing = set(lines["missing_lines"]) | set(lines["excluded_lines"])
        for node in ast.walk(ast.parse(Path(name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and node.lineno in missing:
                found.append(f"{name}:{node.lineno}: {ast.unparse(node).splitlines()[0][:100]}")
    return found


if __name__ == "__main__":
    if places := never_raised(Path(sys.argv[1])):
        sys.exit("\n".join(["No test reaches these errors; write one, or delete what cannot happen:", *places]))
    print("Every raise was reached by a test.")
