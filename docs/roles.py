"""References in docstrings, :func:`name`, as code."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|attr|mod):`~?([^`]+)`")


class Roles(griffe.Extension):
    """Rewrites every docstring that is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Turn the roles of one docstring into plain code."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(lambda match: f"`{match.group(1).split('.')[-1]}`", obj.docstring.value)
