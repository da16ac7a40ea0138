"""How good is a trained model and its guide? Numbers, verdicts, ArviZ, pictures.

All take what `fit` returned (or a pair of model and guide) and what both are called with, run them
at the trained parameters, and leave everything as it was.

- `to_arviz`: posterior and predictive draws, log-likelihoods and statistics of the fit, as data for
  ArviZ;
- `importance_diagnostics`: is the guide near the posterior, datum by datum, and can one tell;
- `posterior_gap`: the exact answer, where the states can be listed;
- `rate_distortion`: bits, MSE and PSNR of each datum;
- `code_usage`, `active_latents`, `latent_rates`: what each latent does;
- `gradient_variance`: how noisy the gradients of losses are, and whether they agree;
- `simulation_based_calibration`: does the guide find the latents that made simulated data.
"""

from numpyro_dvae.diagnostics.accuracy import posterior_gap, rate_distortion
from numpyro_dvae.diagnostics.calibration import simulation_based_calibration
from numpyro_dvae.diagnostics.gradients import gradient_variance
from numpyro_dvae.diagnostics.importance import importance_diagnostics
from numpyro_dvae.diagnostics.inference_data import to_arviz
from numpyro_dvae.diagnostics.latents import active_latents, code_usage, latent_rates

__all__ = [
    "active_latents",
    "code_usage",
    "gradient_variance",
    "importance_diagnostics",
    "latent_rates",
    "posterior_gap",
    "rate_distortion",
    "simulation_based_calibration",
    "to_arviz",
]
