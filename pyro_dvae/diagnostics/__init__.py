"""How good is a trained model and its guide? Numbers, verdicts, ArviZ, pictures.

All take what `fit` returned (or a pair of model and guide) and what both are called with, run them
at the trained parameters, and leave everything as it was. Start with `evaluate`.

- `evaluate`: bounds, rate, distortion, PSNR and codes in use, in one table;
- `to_arviz`: posterior and predictive draws, log-likelihoods and statistics of the fit, as data for
  ArviZ;
- `compare_restarts`: do runs from different starts agree, as chains of ArviZ, labels aligned;
- `importance_diagnostics`: is the guide near the posterior, datum by datum, and can one tell;
- `discrete_posterior`: what each discrete latent is, and how sure;
- `posterior_gap`: the exact answer, where the states can be listed;
- `rate_distortion`: bits, MSE and PSNR of each datum;
- `code_usage`, `active_latents`, `latent_rates`: what each latent does;
- `gradient_variance`: how noisy the gradients of losses are, and whether they agree;
- `simulation_based_calibration`: does the guide find the latents that made simulated data;
- `plots`: pictures of all these.

Behind them, `trained` takes a result apart, `readings` runs its programs, `labels` reads the sites,
`collect` fills `draws` with that, `weighing`, `costing`, `summaries` and `usage` have the formulas
on these, `reports`, `carried`, `verdicts` and `sharing` what is returned, in the `words` of all;
`symmetry` tries what codes may be called otherwise, `agreement` tells whether runs agree; `groups`
alone meets ArviZ, with `names` that do not clash there. This room may import `fit` and all rooms
below it.

Which file to open: for a site of the guide alone, `auxiliary`; for states that it cannot draw,
`left_out`; for a mask, `programs.densities` says where it is in a program, and `summaries` and
`usage` what it leaves out; for what `to_arviz` puts in a group, `groups`; for how a value of a site
is read, `readings`, and for what a model simulates, `simulations`; for an average over draws,
`summaries`; for how many draws go through the programs at once, `collect`; for a rate without the
noise of its own draw, `rates` and `conditionals`; for the probabilities of a discrete latent,
`posteriors` and `averaging`; for whether ranks are uniform, `uniformity`; for how good gradients
are, `quality`; for a standard error, `errors` and `expectations`; for what the data share, `costs`;
for what a bound is not, `notes`, and why, `points` (a guide without a distribution), `weighed` (a
scaled density) and `silence` (a latent under a mask); for arguments, `trees` and `arguments`, and
`arrays` for named dims; for what `batch_size` cuts, `cutting` and `batches`; for progress bars,
`waiting`; for how long draws take that Pyro runs one by one, its `patience`.

Words: a *reading* is one thing that can be read of a site, such as its values or its rate; the
*record* has the log-densities of each draw and datum; a *datum* is one cell of the *plates* that
the discrete latents share; what the data *share* are the sites outside of these plates, and the
*whole* is all data with what they share, as the loss sums them; *draws* are K values of a datum's
latents, or all their states listed; a *block* is some draws of some rows of the data, which go
through the programs at once; a *named array* is one whose dims have names; a *report* is what a
diagnostic returns, to be printed or plotted.
"""

from pyro_dvae.diagnostics.accuracy import posterior_gap, rate_distortion
from pyro_dvae.diagnostics.calibration import simulation_based_calibration
from pyro_dvae.diagnostics.discrete import discrete_posterior
from pyro_dvae.diagnostics.evaluation import evaluate
from pyro_dvae.diagnostics.gradients import gradient_variance
from pyro_dvae.diagnostics.importance import importance_diagnostics
from pyro_dvae.diagnostics.inference_data import to_arviz
from pyro_dvae.diagnostics.latents import active_latents, code_usage, latent_rates
from pyro_dvae.diagnostics.restarts import compare_restarts

__all__ = [
    "active_latents",
    "code_usage",
    "compare_restarts",
    "discrete_posterior",
    "evaluate",
    "gradient_variance",
    "importance_diagnostics",
    "latent_rates",
    "posterior_gap",
    "rate_distortion",
    "simulation_based_calibration",
    "to_arviz",
]
