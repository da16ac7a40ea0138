"""Train a model and guide: minibatches, progress, log, evaluation, checkpoints, a clear stop.

``fit(svi, *data, num_steps=...)`` takes any Pyro `SVI`, whatever its model, guide and loss.
"""

from pyro_dvae.fit.loop import fit
from pyro_dvae.fit.restarts import fit_restarts
from pyro_dvae.fit.result import DivergenceError, FitInterrupt, FitResult
from pyro_dvae.fit.schedules import exponential_schedule, linear_schedule

__all__ = [
    "DivergenceError",
    "FitInterrupt",
    "FitResult",
    "exponential_schedule",
    "fit",
    "fit_restarts",
    "linear_schedule",
]
