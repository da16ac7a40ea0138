"""Inference for NumPyro models with discrete latents.

- `numpyro_dvae.infer`: the algorithms, each a loss for `numpyro_dvae.infer.SVI`
- `numpyro_dvae.fit`: a training loop with progress, log, checkpoints and resume
- `numpyro_dvae.diagnostics`: how good a trained model and its guide are
- `numpyro_dvae.models`, `numpyro_dvae.guides`: discrete VAEs, and guides of any model
- `numpyro_dvae.nets`, `numpyro_dvae.distributions`: what these are made of
- `numpyro_dvae.programs`: from any model and guide to arrays
- `numpyro_dvae.ops`: the mathematics, as functions of arrays
"""

import importlib.metadata
import importlib.util

_NEEDED = ("jax", "numpyro", "flax", "optax", "orbax")

if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
    raise ImportError(
        f"numpyro_dvae needs {', '.join(missing)}, which its extra brings: "
        "pip install 'pyro-dvae[numpyro]'"
    )


def __getattr__(name: str) -> str:
    """The version, which stands in pyproject.toml alone."""
    if name == "__version__":
        return importlib.metadata.version("pyro-dvae")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
