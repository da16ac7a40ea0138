"""Inference for Pyro models with discrete latents.

- `pyro_dvae.infer`: the algorithms, each a loss for `pyro.infer.SVI`
- `pyro_dvae.fit`: a training loop with progress, log, checkpoints and resume
- `pyro_dvae.diagnostics`: how good a trained model and its guide are
- `pyro_dvae.models`, `pyro_dvae.guides`: discrete VAEs, and guides of any model
- `pyro_dvae.nets`, `pyro_dvae.distributions`: what these are made of
- `pyro_dvae.programs`: from any model and guide to arrays
- `pyro_dvae.ops`: the mathematics, as functions of arrays
"""

import importlib.metadata
import importlib.util

_NEEDED = ("torch", "pyro")

if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
    raise ImportError(
        f"pyro_dvae needs {', '.join(missing)}, which its extra brings: "
        "pip install 'pyro-dvae[pyro]'"
    )


def __getattr__(name: str) -> str:
    """The version, which stands in pyproject.toml alone."""
    if name == "__version__":
        return importlib.metadata.version("pyro-dvae")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
