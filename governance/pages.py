"""The one jinja environment of every page: all text is escaped, an unknown name in a template is an error."""

from __future__ import annotations

import jinja2


def template(name: str) -> jinja2.Template:
    """A template of ``governance/templates``."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fedethos.governance", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
