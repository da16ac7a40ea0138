"""How good is a trained model and its guide? Numbers, verdicts, ArviZ, pictures.

All take what `fit` returned (or a pair of model and guide) and what both are called with, run them
at the trained parameters, and leave everything as it was.

- `to_arviz`: posterior and predictive draws, log-likelihoods and statistics of the fit, as data for
  ArviZ;
- `importance_diagnostics`: is the guide near the posterior, datum by datum, and can one tell.
"""

from pyro_dvae.diagnostics.importance import importance_diagnostics
from pyro_dvae.diagnostics.inference_data import to_arviz
from pyro_dvae.diagnostics.reports import ImportanceDiagnostics

__all__ = ["ImportanceDiagnostics", "importance_diagnostics", "to_arviz"]
