"""Formulas as MathML, which browsers show by themselves."""

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

# A function's name and its argument, which TeX sets apart.
FUNCTION = re.compile(r"(<m[io]>(?:log|exp|max|min)</m[io]>)(?=<m(?:i|sub|sup|subsup)\b)")


def formula(tex: str, display: str) -> str:
    """TeX as MathML."""
    return FUNCTION.sub(r'\1<mspace width="0.17em"/>', convert(tex, display=display))


def visit_inline(self: Any, node: nodes.math) -> None:
    """A formula within a line."""
    self.body.append(formula(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_block(self: Any, node: nodes.math_block) -> None:
    """A formula of its own line."""
    self.body.append(f'<div class="math">{formula(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Make this the renderer of formulas."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
