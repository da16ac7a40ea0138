"""Is the guide near the posterior? The weights ``w = p(x, z) / q(z | x)`` of its draws tell.

They are all equal if the guide is exact. The effective sample size ``(Σ w)² / Σ w²`` is K times
``(E w)² / E w²``, that is ``K exp(-D₂(p ‖ q))`` with Rényi's divergence of order 2; the Pareto
shape k̂ of the largest weights says whether K draws are enough to see it [1]. Discrete latents
tie weights, which makes a plain k̂ meaningless; see `ops.importance`. The effective sample size
does not mind draws where the posterior has nothing, as long as the others are right; the ELBO does,
so the verdict asks for both.

References:
    [1] Yao, Vehtari, Simpson & Gelman. Yes, but did it work? Evaluating variational inference.
        ICML, 2018.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_dvae.diagnostics.draws import Store, count_states, is_restricted
from pyro_dvae.diagnostics.reports import ImportanceDiagnostics
from pyro_dvae.diagnostics.trained import collect
from pyro_dvae.ops.bounds import importance_weighted_bound
from pyro_dvae.ops.importance import khat_threshold, pareto_tail
from pyro_dvae.ops.tempering import effective_sample_size

__all__ = ["importance_diagnostics"]

_LEAST_PARTICLES = 25  # a fifth of them are the tail, which needs 5


def importance_diagnostics(
    result: Any,
    *data: Any,
    num_particles: int = 1000,
    params: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
) -> ImportanceDiagnostics:
    """Judge the guide, datum by datum, by the importance weights of its draws.

    Args:
        result: What `fit` returned, or a pair (model, guide).
        *data: What model and guide are called with.
        num_particles: K, draws per datum; at least 25. More show rarer states.
        params: Parameters by name, in place of those of `result`.
        batch_size: Rows of the data that go through the programs at once, for data of many rows;
            all by default. Latents must be those of a row, under one plate.

    Returns:
        Bounds, effective sample size, k̂, largest weight and verdict of each datum; `print` it.

    Raises:
        ValueError: If an argument cannot be used, or model and guide do not match.
    """
    check_num_particles(num_particles)
    store = collect(result, data, num_particles, ("outside",), params=params, batch_size=batch_size)
    return diagnose_weights(store)


def check_num_particles(num_particles: int) -> None:
    """Raise unless there are enough draws for a tail."""
    if num_particles < _LEAST_PARTICLES:
        raise ValueError(
            f"`num_particles` must be at least {_LEAST_PARTICLES}, for the largest weights to be a "
            f"tail; got {num_particles}."
        )


def diagnose_weights(store: Store) -> ImportanceDiagnostics:
    """Judge the weights of draws that were made."""
    log_weights = store.log_weights
    origin = np.max(log_weights, axis=0)
    origin = np.where(np.isfinite(origin), origin, 0.0)
    centred = torch.from_numpy(log_weights - origin)
    tail = pareto_tail(centred)
    return ImportanceDiagnostics(
        elbo=log_weights.mean(0),
        iwae=importance_weighted_bound(centred).numpy() + origin,
        ess=effective_sample_size(centred).numpy(),
        khat=tail.khat.numpy(),
        largest_weight=tail.largest_weight.numpy(),
        num_tail_weights=tail.num_distinct.numpy(),
        num_states=count_states(store),
        restricted=is_restricted(store),
        num_particles=store.num_draws,
        khat_threshold=khat_threshold(store.num_draws),
    )
