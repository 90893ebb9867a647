"""References in docstrings, :func:`name`, as code; and the fields of results, which say themselves what they are."""

import importlib
import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|attr|mod):`~?([^`]+)`")


class Roles(griffe.Extension):
    """Rewrites every docstring that is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Turn the roles of one docstring into plain code."""
        if obj.is_class and obj.module.path.startswith("hf_pacgen.results.") and obj.docstring is not None:
            # only the class as it runs has the lines that its fields add
            obj.docstring.value = getattr(importlib.import_module(obj.module.path), obj.name).__doc__
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(lambda match: f"`{match.group(1).split('.')[-1]}`", obj.docstring.value)
