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

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.primitives import Messenger

from numpyro_dvae.infer.elbo import BetaState, Estimate, ParticleELBO, objective
from numpyro_dvae.ops.relaxing import with_slope
from numpyro_dvae.programs.run import Particles
from numpyro_dvae.programs.sites import Layout

__all__ = ["VQ_ELBO", "VQInfo"]


class VQInfo(NamedTuple):
    """Means per datum of the last step."""

    elbo: Float[Array, ""]  # nats
    beta_elbo: Float[Array, ""]  # nats
    rate: Float[Array, ""]  # bits that the latents carry
    beta: float | Array
    distance: Float[Array, ""]  # |z_e - e|² of one latent


class VQ_ELBO(ParticleELBO):
    """Straight-through gradients for a guide that quantises vectors.

    Args:
        commitment: Weight of ``|z_e - sg(e)|²``, which holds the encoder to its codes: a sum over
            all data, latents and channels, as the ELBO is, and not their mean.
        **options: See `ParticleELBO`; there is one particle, as all would be equal.

    Raises:
        ValueError: If `commitment` is negative; on the first step, if the guide quantises nothing.
    """

    info_class = VQInfo

    def __init__(self, *, commitment: float = 0.25, **options: Any) -> None:
        if not 0.0 <= commitment < math.inf:
            raise ValueError(f"`commitment` must be finite and not negative; got {commitment}.")
        self.commitment = commitment
        self._programs: tuple[Any, Any] | None = None
        super().__init__(1, **options)

    def _run(
        self,
        rng_key: Array,
        params: dict[str, Any],
        model: Callable,
        guide: Callable,
        args: tuple,
        kwargs: dict,
    ) -> tuple[Particles, dict[str, Any]]:
        if self._programs != (model, guide):
            self._programs, self._giver = (model, guide), _Giver()
            noter = _Noter(self._giver.vectors)
            self._linked = _Under(model, self._giver), _Under(guide, noter)
        try:
            return super()._run(rng_key, params, *self._linked, args, kwargs)
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
        beta = self._current_beta(state, particles)
        value = objective(particles, beta)
        gain, num_vectors = value.beta_elbo.mean(0).sum(), 0
        squares = jnp.zeros((), value.elbo.dtype)
        for inputs, vectors in particles.quantized.values():
            fixed_inputs, fixed_vectors = jax.lax.stop_gradient((inputs, vectors))
            gain = gain - ((fixed_inputs - vectors) ** 2).sum()
            gain = gain - self.commitment * ((inputs - fixed_vectors) ** 2).sum()
            squares = squares + ((fixed_inputs - fixed_vectors) ** 2).sum()
            num_vectors += inputs[..., 0].size
        rate = (particles.log_likelihood - value.elbo).mean()
        return Estimate(
            loss=-particles.scale * value.elbo.mean(0).sum() - value.shared_elbo.mean(),
            surrogate=-particles.scale * gain - value.shared_beta_elbo.mean(),
            info=VQInfo(
                elbo=value.elbo.mean(),
                beta_elbo=value.beta_elbo.mean(),
                rate=rate / math.log(2),
                beta=beta,
                distance=squares / num_vectors,
            ),
            state=self._next_beta_state(state, rate),
        )


class _Noter(Messenger):
    """Notes the vectors that a guide publishes."""

    def __init__(self, vectors: dict[str, Array]) -> None:
        super().__init__()
        self.vectors = vectors

    def postprocess_message(self, msg: Any) -> None:
        """Keep the value of a deterministic site."""
        if msg["type"] == "deterministic":
            self.vectors[msg["name"]] = msg["value"]


class _Giver(Messenger):
    """Gives a model vectors where it samples their codes.

    Innermost around the program: a trace has recorded the codes by then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.vectors: dict[str, Array] = {}
        self.is_open = True

    def __exit__(self, *error: Any) -> None:
        """Let go of the vectors: they belong to the run that is over."""
        super().__exit__(*error)
        self.vectors.clear()

    def postprocess_message(self, msg: Any) -> None:
        """Replace the value of a sampled site."""
        if msg["type"] != "sample" or not self.is_open:
            return
        path = self.vectors.get(f"{msg['name']}.inputs")
        vectors = self.vectors.get(f"{msg['name']}.vectors")
        if path is not None and vectors is not None:
            msg["value"] = with_slope(vectors, path)


class _Under:
    """A program under a handler, compared by its identity."""

    def __init__(self, program: Callable, handler: Messenger) -> None:
        self.program, self.handler = program, handler

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.handler:
            return self.program(*args, **kwargs)
