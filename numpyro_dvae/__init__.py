"""Inference for NumPyro models with discrete latents."""

import importlib.util

_NEEDED = ("jax", "numpyro", "flax", "optax", "orbax")

if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
    raise ImportError(
        f"numpyro_dvae needs {', '.join(missing)}, which its extra brings: "
        "pip install 'pyro-dvae[numpyro]'"
    )
