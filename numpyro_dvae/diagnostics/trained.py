"""A trained pair of model and guide, run at its parameters."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.handlers import substitute

from numpyro_dvae.diagnostics.readings import Pair, constraints_of, prepare_pair
from numpyro_dvae.fit.data import Batch, as_batch
from numpyro_dvae.fit.result import is_pair
from numpyro_dvae.infer.objective import LOSS_MEMORY
from numpyro_dvae.infer.relaxation import unrelaxed
from numpyro_dvae.nets.evaluating import Evaluating

__all__ = ["Trained", "as_trained"]


class Trained(NamedTuple):
    """A model and guide, and the values of their parameters."""

    model: Callable
    guide: Callable
    params: Mapping[str, Any]
    named: frozenset[str] = frozenset()  # of which the programs must ask for one, if there are any

    def arguments(self, data: tuple) -> tuple:
        """Data as model and guide are called with them, whose arrays may all be traced."""

        def traceable(leaf: Any) -> Any:
            is_array = isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc"
            return jnp.asarray(leaf) if is_array else leaf

        return tuple(jax.tree.map(traceable, as_batch(data).args))

    def substituted(self, params: Mapping[str, Any] | None = None) -> tuple[Callable, Callable]:
        """The programs, without `relax`, in evaluation mode, with their parameters or others."""
        params = self.params if params is None else params
        copied = jax.tree.map(lambda leaf: leaf, params)  # a guide's codebook moves when it runs
        model, guide = Evaluating(unrelaxed(self.model)), Evaluating(unrelaxed(self.guide))
        return substitute(model, data=params), substitute(guide, data=copied)

    def at(self, pair: Pair, params: Any, batch: Batch) -> Pair:
        """The pair with parameters and arguments that may be traced."""
        model, guide = self.substituted(params)
        return pair._replace(model=model, guide=guide, args=batch.args)

    def pair(self, rng_key: Array, args: tuple) -> Pair:
        """Read the structure of the programs, and see that no parameter is left to chance.

        Raises:
            ValueError: If a parameter, or mutable state, is missing.
        """
        self.constraints(rng_key, args)
        return prepare_pair(rng_key, *self.substituted(), args, {})

    def constraints(self, rng_key: Array, args: tuple) -> dict[str, Any]:
        """Of each parameter of the programs, all of which it has.

        Raises:
            ValueError: If a parameter, or mutable state, is missing, or none that was named is one.
        """
        params, state = constraints_of(rng_key, *self.substituted(), args, {})
        missing = {*params, *state} - self.params.keys()
        if missing:
            with_state = " | svi_state.mutable_state" if state else ""
            raise ValueError(
                f"`params` lacks {sorted(missing)[:5]}, so that these would be initial values. "
                f"Pass the FitResult, or `params=svi.get_params(svi_state){with_state}`."
            )
        if self.named and self.named.isdisjoint({*params, *state, LOSS_MEMORY}):
            raise ValueError(
                f"`params` has {sorted(self.named)[:5]}, for which neither model nor guide asks "
                f"with these data; they ask for {sorted({*params, *state})[:5]}. Leave them out, "
                "or mend the names."
            )
        return params


def as_trained(result: Any, params: Mapping[str, Any] | None) -> Trained:
    """Take a `FitResult`, or a (model, guide) pair with parameters.

    Raises:
        ValueError: If it is neither, or if a parameter has a NaN.
    """
    if not (params is None or isinstance(params, Mapping)):
        raise ValueError(f"`params` must be a dict of parameters by name; got {params!r}.")
    if is_pair(result):
        return Trained(*result, _numbers({} if params is None else _as_arrays(params)))
    named = frozenset(params or ()) - result.params.keys()
    params = {**result.params, **(params or {})}
    return Trained(result.model, result.guide, _numbers(_as_arrays(params)), named)


def _numbers(params: dict[str, Any]) -> dict[str, Any]:
    for name, value in params.items():
        if name == LOSS_MEMORY:  # which may not know a number yet
            continue
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(value) if _is_float(leaf)]
        if any(np.isnan(leaf).any() for leaf in leaves):
            raise ValueError(
                f"parameter '{name}' has entries that are NaN, of which there is nothing to "
                "report. Take parameters of an earlier step, as from a checkpoint."
            )
    return params


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _as_arrays(params: Mapping[str, Any]) -> dict[str, Any]:
    """With arrays of NumPy, as from a file, as JAX's: what is traced may index only these."""
    return {
        name: jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, value)
        for name, value in params.items()
    }
