"""Turn docstrings as diffusers writes them into what the API page shows: an extension of griffe, named in mkdocs.yml.

diffusers links with [`~MarDiniPipeline.extend`] and writes types as (`int`, *optional*, defaults to `4`).
"""

import re
from typing import Any

import griffe


class DiffusersDocstrings(griffe.Extension):
    """Take the marks of diffusers' own builder out of every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value)


def plain(text: str) -> str:
    """Return a docstring whose links are code, and whose types have no marks of their own."""
    text = re.sub(r"\[(`)~?([\w.]+`)\]", r"\1\2", text)
    return re.sub(
        r"^(\s+[\w, ]+ \()(.*)(\):)",
        lambda found: found[1] + re.sub("[`*]", "", found[2]) + found[3],
        text,
        flags=re.M,
    )
