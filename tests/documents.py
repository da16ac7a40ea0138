"""Programs in documents, taken out of them and run in order, those of a package together."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in (ROOT / "docs").rglob("*.md")
    if "_build" not in path.parts and "tutorials" not in path.parts
)
METHODS = [path for path in PAGES if path.parent.name == "methods" and path.stem != "index"]


def programs(path):
    """The Python blocks of a document by package, in order."""
    found = {"pyro": [], "numpyro": []}
    for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        theirs = "numpyro" in block or "jax" in block or "rng_key" in block
        found["numpyro" if theirs else "pyro"].append(block)
    return found


def run_blocks(blocks, name, names):
    """Run them one after the other with few steps, in one namespace."""
    for block in blocks:
        short = re.sub(r"num_steps=\d+", "num_steps=3", block)
        short = short.replace("images[1500:]", "images[1770:]")
        exec(compile(short, str(name), "exec"), names)
    return names


def table(text, heading):
    """Rows of the first table after a heading, without its head."""
    section = text.partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    _, first, rest = section.partition("\n|")
    rows = []
    for line in (first + rest).strip().partition("\n\n")[0].splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if set("".join(cells)) <= set("-: "):
            continue
        rows.append(cells)
    return rows[1:]
