"""REINFORCE: the score-function gradient of the beta-ELBO, with baselines that are worth having.

For each datum, with ``f_k`` the beta-ELBO's integrand of particle k and ``b_k`` its baseline,

    gradient = mean_k [(f_k - b_k) grad log q(z_k) + grad f_k],

the second term along the pathwise parts (model, reparameterised sites, closed-form entropies).
Leave-one-out baselines [2] make this unbiased for K > 1 without anything to learn.

Where a draw influences a part of a datum only, as in a chain, a tree or a nested plate, ``f_k`` is
that part, and has a baseline of its own, site by site and cell by cell [4]:
`programs.readers.credit`.

References:
    [1] Williams. Simple statistical gradient-following algorithms for connectionist reinforcement
        learning. Machine Learning, 1992.
    [2] Kool, van Hoof & Welling. Buy 4 REINFORCE samples, get a baseline for free! ICLR
        workshop, 2019.
    [3] Mnih & Gregor. Neural variational inference and learning in belief networks. ICML, 2014
        (moving-average and learned baselines).
    [4] Schulman, Heess, Weber & Abbeel. Gradient estimation using stochastic computation graphs.
        NeurIPS, 2015.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from pyro_dvae.infer.elbo import ParticleELBO
from pyro_dvae.infer.objective import Gain, Objective, credited
from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.baselines import Baseline, leave_one_out, moving_average
from pyro_dvae.ops.weighting import fill_impossible
from pyro_dvae.programs.readers.credit import credit_reader, find_influence, log_draw
from pyro_dvae.programs.record import Particles, Reader, in_batch_dims
from pyro_dvae.programs.sites import Layout, Pair, Run, Site

__all__ = ["Reinforce_ELBO", "score_function"]


def score_function(
    beta_elbo: Float[Tensor, "K *plates"],
    log_draw: Float[Tensor, "K *plates"],
    baseline: Float[Tensor, "..."] | float = 0.0,
) -> Float[Tensor, "*plates"]:
    """The score-function estimator of the gradient of ``E_q[f]``.

    Args:
        beta_elbo: f of each particle, with its gradient along the pathwise parts.
        log_draw: Log-probability of each draw under the guide; its gradient is the score.
        baseline: What f is compared with; it must not depend on the draw of the same particle.

    Returns:
        What is ascended, for each datum.

    Example:
        >>> f, log_q = torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1, requires_grad=True)
        >>> score_function(f, log_q, torch.tensor([[3.0], [1.0]])).sum().backward()
        >>> log_q.grad.flatten()  # (f - baseline) / K
        tensor([-1.,  1.])
    """
    return ((beta_elbo.detach() - baseline) * log_draw + beta_elbo).mean(0)


def read_prediction(run: Run, layout: Layout, num_particles: int) -> Tensor | None:
    """The guide's baseline b(x), from its deterministic site "baseline", by datum."""
    site = run.computed().get("baseline")
    if site is None:
        return None
    value = in_batch_dims(site, site.value, layout.nesting, num_particles)
    shape = value.shape[0], *(value.shape[dim] for dim in layout.dims)
    if math.prod(shape) != value.numel():
        raise ValueError(_not_by_datum(site, layout))
    return value.reshape(shape)


def _not_by_datum(site: Site, layout: Layout) -> str:
    return (
        f"`baseline`: the guide's site 'baseline' is under {sorted(site.plates)}, but the scores "
        f"are of the cells of {sorted(layout.plates)}, which all discrete draws that hang together "
        "share. Compute one number for each of these, under these plates alone."
    )


class Reinforce_ELBO(ParticleELBO):
    """Score-function estimator, unbiased for any model and guide.

    Args:
        num_particles: K.
        baseline: One of `pyro_dvae.ops.baselines`, or one's own; of functions that a module
            has by name, if the loss is to be pickled. Default: `leave_one_out` for K > 1, else
            `moving_average`. `learned` takes b(x) from the guide's site
            ``pyro.deterministic("baseline", b)``, under the data plate, and fits it to the scores.
            A baseline that remembers or learns is of the whole datum, and so are the scores then.
        closed_form_entropy: See `ParticleELBO`.
        beta: See `ParticleELBO`.
        target_rate: See `ParticleELBO`.
        max_plate_nesting: See `ParticleELBO`.
        vectorize_particles: See `ParticleELBO`.

    Raises:
        ValueError: If K is too small for the baseline, or `learned` finds no site "baseline".
    """

    reads: ClassVar = {"prediction": read_prediction}

    @checked
    def __init__(
        self,
        num_particles: int = 8,
        *,
        baseline: Baseline | None = None,
        closed_form_entropy: bool = True,
        beta: float | Callable[[int], float] = 1.0,
        target_rate: float | None = None,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
    ) -> None:
        if baseline is None:
            several = isinstance(num_particles, int) and num_particles > 1
            baseline = leave_one_out() if several else moving_average()
        self.baseline, self.min_particles = baseline, baseline.min_particles
        super().__init__(
            num_particles,
            beta=beta,
            target_rate=target_rate,
            closed_form_entropy=closed_form_entropy,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
        )

    def init_memory(self) -> Any:
        """What the baseline remembers at first."""
        return self.baseline.init()

    def inspect(self, pair: Pair) -> Any:
        """Which draws influence what, if the baseline is made of the scores alone."""
        alone = not self.baseline.predicts and not len(self.baseline.init())
        return find_influence(pair) if alone else None

    def readers(self, pair: Pair) -> Mapping[str, Reader]:
        """A prediction if it is asked for; of draws not all alike, what each can influence."""
        unread = () if self.baseline.predicts else ("prediction",)
        reads = {name: reader for name, reader in self.reads.items() if name not in unread}
        if pair.notes is None or pair.structure is None or not pair.vectorize:
            return reads
        return {
            **reads,
            "credit": credit_reader(pair.notes, log_draw, with_entropy=self.closed_form_entropy),
        }

    def gain(
        self, particles: Particles, objective: Objective, beta: float | Tensor, memory: Any
    ) -> Gain:
        """Compare the scores with the baseline, and fit it if it is learnt."""
        prediction = particles.extras.get("prediction")
        if self.baseline.predicts and prediction is None:
            raise ValueError(
                "`baseline`: learned() needs the guide to compute its prediction; write "
                'pyro.deterministic("baseline", b) under the data plate, b of the plate\'s shape.'
            )
        beta_elbo = fill_impossible(objective.beta_elbo)
        scores = beta_elbo.detach()
        if "credit" in particles.extras:
            return Gain(beta_elbo.mean(0) + self._credited(particles, beta), memory=memory)
        fixed = None if prediction is None else prediction.detach()
        baseline, memory = self.baseline.apply(scores, memory, fixed)
        value = score_function(beta_elbo, particles.log_draw, baseline)
        if self.baseline.predicts and prediction is not None:
            value = value - 0.5 * (scores - prediction).square().mean(0)
        return Gain(value, memory=memory)

    def _credited(self, particles: Particles, beta: float | Tensor) -> Tensor:
        def advantages(scores: Tensor) -> Tensor:
            return scores - self.baseline.apply(scores, (), None)[0]

        return credited(particles, beta, advantages)
