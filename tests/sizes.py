"""How long files and functions of the packages are, and how many arguments signatures have.

    python tests/sizes.py

prints the table of docs/contributing.md. `test_layers.py` holds the limits.
"""

import ast
import inspect
import statistics
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ["pyro_dvae", "numpyro_dvae"]
LONGEST_FILE, LONGEST_FUNCTION, MOST_ARGUMENTS = 350, 40, 8


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def functions(path):
    """Name, lines of code without the docstring, and arguments of each function of a file."""
    owners = {}
    for node in ast.walk(ast.parse(path.read_text())):
        owners |= {child: node for child in ast.iter_child_nodes(node)}
        if isinstance(node, ast.FunctionDef):
            said = node.body[0] if ast.get_docstring(node) else None
            lines = node.end_lineno - node.lineno + 1
            lines -= said.end_lineno - said.lineno + 1 if said else 0
            taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            owner = owners[node]
            name = owner.name if node.name == "__init__" else node.name
            yield name, lines, [a.arg for a in taken if a.arg not in ("self", "cls", "rng_key")]


def middle_and_high(values):
    """Median and 90th percentile."""
    return f"{statistics.median(values):.0f} / {statistics.quantiles(values, n=10)[-1]:.0f}"


def knobs(package):
    """How many arguments each loss has, those that all have included."""
    infer = import_module(f"{package}.infer")
    losses = [getattr(infer, name) for name in infer.__all__ if name.endswith("_ELBO")]
    return [len(inspect.signature(loss).parameters) for loss in losses]


def row(package):
    files = [len(path.read_text().splitlines()) for path in sources(package)]
    found = [each for path in sources(package) for each in functions(path)]
    lines, arguments = [n for _, n, _ in found], [len(names) for _, _, names in found]
    return {
        "files": len(files),
        "lines of a file, median / 90th percentile": middle_and_high(files),
        f"files over {LONGEST_FILE} lines": sum(n > LONGEST_FILE for n in files),
        "functions": len(found),
        "lines of a function, median / 90th percentile": middle_and_high(lines),
        f"functions over {LONGEST_FUNCTION} lines": sum(n > LONGEST_FUNCTION for n in lines),
        "arguments, median / 90th percentile": middle_and_high(arguments),
        f"signatures over {MOST_ARGUMENTS} arguments": sum(n > MOST_ARGUMENTS for n in arguments),
        "knobs of a loss, least to most": f"{min(knobs(package))} to {max(knobs(package))}",
    }


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    rows = [row(package) for package in PACKAGES]
    print("| |", " | ".join(f"`{package}`" for package in PACKAGES), "|\n|---|---|---|")
    for name in rows[0]:
        print("|", name, *(f"| {each[name]}" for each in rows), "|")
