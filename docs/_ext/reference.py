"""Makes the pages of the reference: of each room of each package, all its public names.

A name is shown where a user imports it from: `infer.DAPS_ELBO`, not `infer.daps.DAPS_ELBO`. What a
file has beside that follows under the file's own heading.
"""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.application import Sphinx

PACKAGES = {"pyro_dvae": "Pyro", "numpyro_dvae": "NumPyro"}
ROOMS = {
    "infer": "the algorithms",
    "fit": "training, and the way out of it",
    "diagnostics": "how good is it?",
    "guides": "guides, amortised and automatic",
    "models": "discrete VAEs",
    "nets": "networks and codebooks",
    "distributions": "what the framework lacks",
    "ops": "the mathematics, on arrays",
    "programs": "from a program to arrays",
}


def modules_of(room: str) -> list[ModuleType]:
    """The room and the modules in it."""
    top = importlib.import_module(room)
    found = pkgutil.walk_packages(top.__path__, f"{room}.")
    return [top, *(importlib.import_module(each.name) for each in found)]


def names_by_module(room: str) -> dict[str, list[str]]:
    """Public names, each at the first module that shows it."""
    seen: set[int] = set()
    found: dict[str, list[str]] = {}
    for module in modules_of(room):
        names = []
        for name in getattr(module, "__all__", []):
            value = getattr(module, name)
            if id(value) in seen and not isinstance(value, int | float | str | tuple):
                continue
            seen.add(id(value))
            names.append(name)
        found[module.__name__] = names
    return found


def directive(module: str, name: str, value: Any) -> list[str]:
    """How autodoc shows an object."""
    if inspect.isclass(value):
        members = [k for k, v in vars(value).items() if shown(value, k, v)]
        options = [f"   :members: {', '.join(members)}"] if members else []
        return [f".. autoclass:: {module}.{name}", *options, ""]
    if inspect.isroutine(value) or hasattr(value, "__wrapped__"):
        return [f".. autofunction:: {module}.{name}", ""]
    return [f".. py:data:: {module}.{name}", "", f"   {comment_on(module, name)}", ""]


def comment_on(module: str, name: str) -> str:
    """What the source says of a name that is no function and no class."""
    source = inspect.getsource(importlib.import_module(module))
    found = re.search(rf"((?:^#.*\n)*)^{name}\b.*?(?:  # (.*))?$", source, re.MULTILINE)
    if not found:
        return ""
    above = " ".join(line.lstrip("# ") for line in found[1].splitlines())
    return (above or found[2] or "").replace("*", r"\*").replace("|", r"\|")


def shown(owner: type, name: str, value: Any) -> bool:
    """Whether a member is told of: what the class itself defines and describes."""
    if name.startswith("_"):
        return False
    function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    function = getattr(function, "func", function)  # of a cached property
    return bool(inspect.isroutine(function) and function.__doc__)


def page(package: str, room: str, about: str) -> str:
    """The page of a room."""
    full = f"{package}.{room}"
    title = f"{full}: {about}"
    lines = [title, "=" * len(title), ""]
    for module, names in names_by_module(full).items():
        if module != full:
            if not names:
                continue
            lines += [module.removeprefix(f"{package}."), "-" * len(module), ""]
        lines += [f".. automodule:: {module}", "   :no-members:", ""]
        lines += [f".. py:currentmodule:: {module}", ""]
        for name in names:
            lines += directive(module, name, getattr(importlib.import_module(module), name))
    return "\n".join(lines)


def write_pages(app: Sphinx) -> None:
    """Write what has changed, so that Sphinx reads no page twice."""
    for package in PACKAGES:
        folder = Path(app.srcdir) / "reference" / package
        folder.mkdir(exist_ok=True)
        for room, about in ROOMS.items():
            path, text = folder / f"{room}.rst", page(package, room, about)
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before Sphinx looks for them."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
