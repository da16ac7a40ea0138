"""Docstrings as reStructuredText: formulas that stand apart, lists of references, names.

A docstring of the packages is written to be read in the source. An indented block after a
paragraph is a formula or a program there, and `name` may be an argument as well as an object.
"""

import functools
import inspect
import re
import sys
from typing import Any

from docutils import nodes
from reference import ROOMS, names_by_module
from sphinx.application import Sphinx
from sphinx.util.inspect import stringify_signature
from sphinx.util.nodes import make_refnode

SECTIONS = {
    "Args:",
    "Arguments:",
    "Attributes:",
    "Example:",
    "Examples:",
    "Raises:",
    "Returns:",
    "Yields:",
}
LISTS = {"References:": "References", "Glossary:": "Glossary"}


def indent_of(line: str) -> int:
    """How many spaces lead a line."""
    return len(line) - len(line.lstrip())


def mark_literal_blocks(lines: list[str]) -> list[str]:
    """Put ``::`` before indented blocks that follow a paragraph after a blank line."""
    made: list[str] = []
    in_section = in_item = False
    for place, line in enumerate(lines):
        if line and not line[0].isspace():
            in_section = line.strip() in SECTIONS | set(LISTS)
            in_item = line.startswith("- ")
        begins = line.startswith("    ") and place and not lines[place - 1].strip()
        before = next((x for x in reversed(lines[:place]) if x.strip()), "")
        if begins and not in_section and not in_item and not before.startswith(" "):
            made += ["::", ""]
        made.append(line)
    return made


def list_entries(lines: list[str]) -> list[str]:
    """Make lists of the entries of "References:" and "Glossary:"."""
    made: list[str] = []
    inside = False
    for line in lines:
        if line.strip() in LISTS and not line[0].isspace():
            made += [f".. rubric:: {LISTS[line.strip()]}", ""]
            inside = True
        elif inside and line.strip():
            if not line[0].isspace():
                inside = False
                made.append(line)
            elif indent_of(line) == 4:
                made.append("- " + line.strip())
            else:
                made.append("  " + line.strip())
        else:
            made.append(line)
    return made


def clean_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Before Napoleon reads it."""
    package = name.partition(".")[0]
    known = None if what == "module" else public_names(package) - words_of(obj)
    told = [as_words(escape_stars(line), known) for line in lines]
    lines[:] = list_entries(mark_literal_blocks(told))
    # Both packages have errors of these names.
    errors = re.compile(r"^    (DivergenceError|FitInterrupt):")
    lines[:] = [errors.sub(rf"    {package}.fit.\1:", line) for line in lines]


def escape_stars(line: str) -> str:
    """Stars of paths and of shapes, outside of backticks, open no emphasis."""
    parts = re.split(r"(`+[^`]*`+)", line)
    parts[::2] = [re.sub(r"(?<=[/(])\*", r"\\*", part) for part in parts[::2]]
    return "".join(parts)


@functools.cache
def public_names(package: str) -> frozenset[str]:
    """What a docstring may mean by a name without a dot: rooms, and what is shown of them."""
    shown = [names_by_module(f"{package}.{room}").values() for room in ROOMS]
    return frozenset(ROOMS).union(*(names for each in shown for names in each))


def words_of(obj: Any) -> frozenset[str]:
    """The arguments of a function or class, which are no links even if something is called so."""
    try:
        return frozenset(inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        return frozenset()


def as_words(line: str, known: frozenset[str] | None) -> str:
    """Names that are not known, as code: `step` of a log is no method of a network's block."""
    parts = re.split(r"(`+[^`]*`+)", line)
    for i in range(1, len(parts), 2):
        found = re.fullmatch(r"`([a-zA-Z_]\w*)`", parts[i])
        if found and known is not None and found[1] not in known and not parts[i - 1].endswith(":"):
            parts[i] = f"`{parts[i]}`"
    return "".join(parts)


def show_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, args: str, returns: str
) -> tuple[str, str] | None:
    """The arguments of a class's constructor, where a base has a ``__new__`` that takes any."""
    if what != "class" or not str(args).startswith("(*args: ~typing.Any, **options"):
        return None
    return stringify_signature(inspect.signature(obj), unqualified_typehints=True), ""


def in_words(text: str) -> nodes.literal:
    """A name that is no object, as code."""
    return nodes.literal(text, text)


def is_private(target: str) -> bool:
    """Whether a type, as of a variable or of a helper, is in no list of public names."""
    module, _, name = target.rpartition(".")
    found = sys.modules.get(module) if re.match(r"(num)?pyro_dvae\.", target) else None
    return found is not None and name not in getattr(found, "__all__", ())


def find_name(app: Sphinx, env: Any, node: Any, contnode: nodes.Element) -> nodes.Node | None:
    """Find `policy_search` wherever it is in the same package; else show it as code."""
    if node.get("refdomain") == "py" and is_private(node["reftarget"]):
        return contnode
    if node.get("refdomain") != "py" or node.get("reftype") != "obj":
        return None
    target, domain = node["reftarget"].lstrip("."), env.get_domain("py")
    package = (node.get("py:module") or "").partition(".")[0]
    ending = re.compile(rf"(^|\.){re.escape(target)}$")
    apart = ("attribute", "method", "property") if "." not in target else ()
    found = sorted(
        (
            n
            for n, each in domain.objects.items()
            if n.startswith(f"{package}.") and ending.search(n) and each.objtype not in apart
        ),
        key=len,
    )
    if package and found:
        place = domain.objects[found[0]]
        return make_refnode(
            app.builder, node["refdoc"], place.docname, place.node_id, contnode, found[0]
        )
    return in_words(contnode.astext())


def setup(app: Sphinx) -> dict[str, bool]:
    """Listen to autodoc, and to references that lead nowhere."""
    app.connect("autodoc-process-docstring", clean_docstring, priority=400)
    app.connect("autodoc-process-signature", show_signature)
    app.connect("missing-reference", find_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
