"""Train a model and guide: minibatches, progress, log, evaluation, checkpoints, a clear stop.

``fit(rng_key, svi, *data, num_steps=...)`` takes any NumPyro `SVI`, whatever its model, guide and
loss. Start with `loop`, which holds `fit` and its arguments; `run` is the loop itself.

- `loop`, `run`: `fit`, and the run that it makes; `restarts`: several runs, of which the best is
  kept; `result`: what they hand back, and the errors that end them; `schedules`;
- `optimisers`: AdamW with clipping, gradients summed over steps and averages of the weights;
- `data`, `batches`: what a user may pass, and the stream of batches that it becomes;
- `transform`, `steps`: the user's change of a batch, and the compiled steps;
- `templates`, `compiled`: batches taken apart for whatever compiles; programs compiled once;
- `svi`: what an `SVI` holds, and its state;
- `weights`, `export`: the way out, weights, codes, reconstructions and samples;
- `devices`: one training on several devices, which share the rows of each batch;
- `evaluation`: the loss on held-out data; `losses`: the check that all is finite;
  `impossible`: which data have probability 0;
- `checkpoints`: the format of a checkpoint, all of it; `plain`: values as it holds them;
  `identity`: what a run is of, compared when it is resumed;
- `log`, `files`, `rng`, `signals`.

This room may import `infer` and the rooms below it.

Words: a *batch* is what model and guide are called with in a *step*; an *epoch* visits the rows of
the data once; the *transform* changes each batch of the training and none of the *held-out* data; a
*row* of the log is one line of it (of the data, one entry of their leading axis); a *checkpoint*
holds the *run state* (losses, log, position in the data) and the leaves of the `SVIState`.
"""

from numpyro_dvae.fit.export import (
    encode_data,
    reconstruct_data,
    sample_data,
    save_codes,
)
from numpyro_dvae.fit.loop import fit
from numpyro_dvae.fit.optimisers import adamw, averaged
from numpyro_dvae.fit.restarts import fit_restarts
from numpyro_dvae.fit.result import DivergenceError, FitInterrupt, FitResult
from numpyro_dvae.fit.schedules import (
    cosine_schedule,
    exponential_schedule,
    linear_schedule,
    warmup_schedule,
)
from numpyro_dvae.fit.weights import load_weights, save_weights

__all__ = [
    "DivergenceError",
    "FitInterrupt",
    "FitResult",
    "adamw",
    "averaged",
    "cosine_schedule",
    "encode_data",
    "exponential_schedule",
    "fit",
    "fit_restarts",
    "linear_schedule",
    "load_weights",
    "reconstruct_data",
    "sample_data",
    "save_codes",
    "save_weights",
    "warmup_schedule",
]
