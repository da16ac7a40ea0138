"""Inference for NumPyro models with discrete latents."""

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
