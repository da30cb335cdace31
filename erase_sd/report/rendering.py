"""Fills the templates of the pages."""

from __future__ import annotations

import html
import re
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .. import runtime


def render_template(template: str, **values: Any) -> str:
    """A template filled with escaped `values`, style sheet and script inlined."""
    environment = Environment(
        loader=PackageLoader("erase_sd.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["unbroken"] = unbroken
    assets = resources.files("erase_sd.report") / "assets"
    style, script = ((assets / f"report.{kind}").read_text("utf-8") for kind in ("css", "js"))
    return environment.get_template(template).render(
        css=style, js=script, version=runtime.version_of_package(), **values
    )


def unbroken(text: str) -> str:
    """HTML of `text`, in which no line break divides an option, a percentage, an interval or a
    number with an exponent."""
    whole = re.compile(r"--[\w-]+|[\d.]+ %|\[[\d., -]+\]|\b\d+e-\d+\b")
    return whole.sub(r'<span class="whole">\g<0></span>', html.escape(text))
