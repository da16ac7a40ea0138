"""Nothing that is read can run code: a walk over all sources that users run."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("pyro_dvae", "numpyro_dvae", "examples")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {"yaml.load", "yaml.unsafe_load", "os.system", "pd.read_pickle", "pandas.read_pickle"}


def faults(code):
    """What in a source loads code or could be made to."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            found += call_faults(node)
    return found


def call_faults(node):
    name = ast.unparse(node.func)
    options = {word.arg: ast.unparse(word.value) for word in node.keywords}
    found = [name] if name in CALLS | ATTRIBUTES else []
    if name.endswith("torch.load") and options.get("weights_only") != "True":
        found.append("torch.load without weights_only=True")
    if options.get("allow_pickle", "False") != "False":
        found.append(f"{name} with pickles")
    if options.get("shell", "False") != "False":
        found.append(f"{name} in a shell")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_loads_code(path):
    assert faults(path.read_text()) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=given)",
        "eval(text)",
        "yaml.load(file)",
        "subprocess.run(line, shell=True)",
    ],
)
def test_each_fault_is_seen(code):
    """The test of the test."""
    assert len(faults(code)) == 1
