"""Vector quantisation: a guide whose posterior is one state, trained along a straight path.

The guide's vectors z_e are replaced by those of their codes, e (`VectorQuantizedGuide`). Its
posterior has all its mass on these codes, so the value of the loss is a true one,

    -ELBO = -log p(x | z) - log p(z),

to be compared with that of any other algorithm. No gradient passes the choice of a code; instead
the model sees e with the gradient of z_e, and the surrogate is [1]

    -log p(x | e) - log p(z) + |sg(z_e) - e|² + commitment |z_e - sg(e)|²,

summed over the latents of a datum. The third term is what moves a codebook that is a parameter;
one of moving averages has no gradient, and finite scalars [2] have neither of the last two. Biased,
as any straight-through gradient.

While the loss runs the model, a handler hands it vectors ``(*batch, L, D)`` where it samples the
codes; their log-density, and every other use of the model, is of integer codes.

References:
    [1] van den Oord, Vinyals & Kavukcuoglu. Neural discrete representation learning. NeurIPS,
        2017. Equation 3.
    [2] Mentzer, Minnen, Agustsson & Tschannen. Finite scalar quantization. ICLR, 2024.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Float
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_dvae.infer.elbo import BetaState, Estimate, ParticleELBO, objective
from pyro_dvae.ops.relaxing import with_slope
from pyro_dvae.programs.run import Particles
from pyro_dvae.programs.sites import Layout

__all__ = ["VQ_ELBO", "VQInfo"]


class VQInfo(NamedTuple):
    """Means per datum of the last step."""

    elbo: Float[Tensor, ""]  # nats
    beta_elbo: Float[Tensor, ""]  # nats
    rate: Float[Tensor, ""]  # bits that the latents carry
    beta: float | Tensor
    distance: Float[Tensor, ""]  # |z_e - e|² of one latent


class VQ_ELBO(ParticleELBO):
    """Straight-through gradients for a guide that quantises vectors.

    Args:
        commitment: Weight of ``|z_e - sg(e)|²``, which holds the encoder to its codes: a sum over
            all data, latents and channels, as the ELBO is, and not their mean.
        **options: See `ParticleELBO`; there is one particle, as all would be equal.

    Raises:
        ValueError: If `commitment` is negative; on the first step, if the guide quantises nothing.
    """

    def __init__(self, *, commitment: float = 0.25, **options: Any) -> None:
        if not 0.0 <= commitment < math.inf:
            raise ValueError(f"`commitment` must be finite and not negative; got {commitment}.")
        self.commitment = commitment
        self._programs: tuple[Any, Any] | None = None
        super().__init__(1, **{"vectorize_particles": False, **options})

    def _run(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Particles:
        if self._programs != (model, guide):
            self._programs, self._giver = (model, guide), _Giver()
            noter = _Noter(self._giver.vectors)
            self._linked = _Under(model, self._giver), _Under(guide, noter)
        try:
            return super()._run(*self._linked, args, kwargs)
        finally:
            self._giver.vectors.clear()

    def _find_layout(self, *run: Any) -> Layout:
        self._giver.is_open = False  # what depends on the codes is seen on the codes
        try:
            return super()._find_layout(*run)
        finally:
            self._giver.is_open = True

    def _estimate(self, particles: Particles, state: BetaState) -> Estimate:
        if particles.quantized is None:
            raise ValueError(
                "VQ_ELBO needs a guide that quantises vectors, with the deterministic sites "
                '"z.inputs" and "z.vectors" beside its site "z"; found none. Use '
                "VectorQuantizedGuide, or another loss."
            )
        beta = self._current_beta(state)
        value = objective(particles, beta)
        gain, num_vectors = value.beta_elbo.mean(0).sum(), 0
        squares = value.elbo.new_zeros(())
        for inputs, vectors in particles.quantized.values():
            gain = gain - (inputs.detach() - vectors).square().sum()
            gain = gain - self.commitment * (inputs - vectors.detach()).square().sum()
            squares = squares + (inputs - vectors).detach().square().sum()
            num_vectors += inputs[..., 0].numel()
        rate = (particles.log_likelihood - value.elbo).detach().mean()
        return Estimate(
            loss=-particles.scale * value.elbo.mean(0).sum() - value.shared_elbo.mean(),
            surrogate=-particles.scale * gain - value.shared_beta_elbo.mean(),
            info=VQInfo(
                elbo=value.elbo.detach().mean(),
                beta_elbo=value.beta_elbo.detach().mean(),
                rate=rate / math.log(2),
                beta=beta,
                distance=squares / num_vectors,
            ),
            state=self._next_beta_state(state, rate),
        )


class _Noter(Messenger):
    """Notes the vectors that a guide publishes."""

    def __init__(self, vectors: dict[str, Tensor]) -> None:
        super().__init__()
        self.vectors = vectors

    def _pyro_post_sample(self, msg: Any) -> None:
        if (msg["infer"] or {}).get("_deterministic"):
            self.vectors[msg["name"]] = msg["value"]


class _Giver(Messenger):
    """Gives a model vectors where it samples their codes.

    Innermost around the program: a trace has recorded the codes by then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.vectors: dict[str, Tensor] = {}
        self.is_open = True

    def _pyro_post_sample(self, msg: Any) -> None:
        path = self.vectors.get(f"{msg['name']}.inputs")
        vectors = self.vectors.get(f"{msg['name']}.vectors")
        if self.is_open and path is not None and vectors is not None:
            msg["value"] = with_slope(vectors, path)


class _Under:
    """A program under a handler, compared by its identity."""

    def __init__(self, program: Callable, handler: Messenger) -> None:
        self.program, self.handler = program, handler

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.handler:
            return self.program(*args, **kwargs)
