"""Train a model and guide: minibatches, progress, log, evaluation, checkpoints, a clear stop.

``fit(rng_key, svi, *data, num_steps=...)`` takes any NumPyro `SVI`, whatever its model, guide
and loss.
"""

from numpyro_dvae.fit.loop import fit
from numpyro_dvae.fit.restarts import fit_restarts
from numpyro_dvae.fit.result import DivergenceError, FitInterrupt, FitResult
from numpyro_dvae.fit.schedules import exponential_schedule, linear_schedule

__all__ = [
    "DivergenceError",
    "FitInterrupt",
    "FitResult",
    "exponential_schedule",
    "fit",
    "fit_restarts",
    "linear_schedule",
]
