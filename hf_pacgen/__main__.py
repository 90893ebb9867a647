"""``python -m hf_pacgen`` is ``hf-pacgen``."""

from __future__ import annotations

import sys

from hf_pacgen.command_line.main import main

if __name__ == "__main__":
    sys.exit(main())
