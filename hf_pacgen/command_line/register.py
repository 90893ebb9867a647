"""``hf-pacgen register``: make ``evaluate.load("pacgen")`` work for processes that never import hf_pacgen."""

from __future__ import annotations

from hf_pacgen.command_line.parser import CommandParser
from hf_pacgen.errors import InputError
from hf_pacgen.register import metric_path, register


def run(argv: list[str]) -> None:
    """Register the metric and say where."""
    CommandParser(
        (),
        "register",
        usage="[-h]",
        description='Make evaluate.load("pacgen") find the metric, in the cache where evaluate keeps its modules '
        "(HF_MODULES_CACHE, or modules in HF_HOME). Once for each such cache will do, upgrades of hf_pacgen included.",
    ).settings(argv)
    module = register()
    if module is None:  # the log has the reason
        raise InputError(
            "The metric could not be registered, since the cache of modules cannot be written: see above. "
            f"evaluate.load({metric_path()!r}) works without it."
        )
    print(f'evaluate.load("pacgen") finds the metric in {module}')
