"""Vector quantisation: a guide whose posterior is one state, trained along a straight path.

The guide's vectors z_e are replaced by those of their codes, e (`VectorQuantizedGuide`). Its
posterior has all its mass on these codes, so the value of the loss is a true one,

    -ELBO = -log p(x | z) - log p(z),

to be compared with that of any other algorithm. No gradient passes the choice of a code; instead
the model sees e with a gradient that the guide chooses (`ops.codepaths`), and the surrogate is [1]

    -log p(x | e) - log p(z) + N / 2v (m(sg(z_e) - e) + commitment m(z_e - sg(e)) + penalty)

with m the mean of squares over the latents of a datum and their channels, N the observed entries of
x and v the mean of their variances under the likelihood. The terms are so weighed as all write
them, a mean of squares against the mean square error of x: N / 2v is what that error costs in nats
under a Gaussian, and v is what the likelihood takes it to be (`programs.readers.precision`). The
term in sg(z_e) is what moves a codebook that is a parameter; one of moving averages has no
gradient, and finite scalars [2] have neither of the two. The penalty is the guide's own, if it has
one. Biased, as any gradient past a code.

While the loss runs the model, a handler hands it vectors ``(*batch, L, D)`` where it samples the
codes; their log-density, and every other use of the model, is of integer codes.

References:
    [1] van den Oord, Vinyals & Kavukcuoglu. Neural discrete representation learning. NeurIPS,
        2017. Equation 3.
    [2] Mentzer, Minnen, Agustsson & Tschannen. Finite scalar quantization. ICLR, 2024.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from numpyro_dvae.infer.elbo import ParticleELBO
from numpyro_dvae.infer.objective import Gain, Objective, info_type
from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.ops.refusing import refuse_gradient
from numpyro_dvae.ops.usage import codes_in_use
from numpyro_dvae.programs.handlers.vectors import (
    QuantizedSite,
    VectorLink,
    read_drawn,
    read_vectors,
)
from numpyro_dvae.programs.readers.precision import read_precision
from numpyro_dvae.programs.record import Particles
from numpyro_dvae.programs.sites import Layout, Pair
from numpyro_dvae.programs.structure.layout import find_layout

__all__ = ["VQ_ELBO", "VQInfo", "quantization_penalty"]

# distance: |z_e - e|² of one latent; of the batch's codes, all latents of a table together: the
# share of it that is used, and the perplexity, in the mean over tables
VQInfo = info_type(__name__, "VQInfo", "distance", "usage", "perplexity")


def quantization_penalty(
    inputs: Float[Array, "*batch L D"],
    vectors: Float[Array, "*batch L D"],
    commitment: float = 1.0,
    mask: Bool[Array, "*#batch #L 1"] | None = None,
) -> Float[Array, "*batch"]:
    """``m(sg(z_e) - e) + commitment m(z_e - sg(e))``, m the mean of the squares of a datum.

    Args:
        inputs: z_e, the encoder's vectors.
        vectors: e, those of their codes.
        commitment: Weight of the second term.
        mask: Which latents count; None is all. Without any the mean is 0.

    Example:
        >>> quantization_penalty(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0]]))
        Array(4., dtype=float32)
    """
    fixed_inputs, fixed_vectors = jax.lax.stop_gradient((inputs, vectors))
    squares = jnp.square(fixed_inputs - vectors)
    squares = squares + commitment * jnp.square(inputs - fixed_vectors)
    return _mean_of_latents(squares.mean(-1, keepdims=True), mask)


def _mean_of_latents(
    values: Float[Array, "*batch L 1"], mask: Bool[Array, "*#batch #L 1"] | None
) -> Float[Array, "*batch"]:
    if mask is None:
        return values.mean((-2, -1))
    mask = jnp.broadcast_to(mask, values.shape)
    return jnp.where(mask, values, 0.0).sum((-2, -1)) / jnp.maximum(mask.sum((-2, -1)), 1)


class VQ_ELBO(ParticleELBO):
    """Straight-through gradients for a guide that quantises vectors.

    There is one particle, as all would be equal.

    Args:
        commitment: Weight of the mean of squares ``m(z_e - sg(e))``, which holds the encoder to its
            codes, against the mean square error of the data.
        beta: See `ParticleELBO`.
        target_rate: See `ParticleELBO`.
        max_plate_nesting: See `ParticleELBO`.

    Raises:
        ValueError: If `commitment` is negative; on the first step, if the guide quantises nothing,
            or by another codebook than that of the model, or if it is to learn another site whose
            draws have no gradient.
    """

    reads: ClassVar = {
        "quantized": read_vectors,
        "drawn": read_drawn,
        "precision": read_precision,
    }
    info_class = VQInfo

    @checked
    def __init__(
        self,
        *,
        commitment: float = 1.0,
        beta: float | Callable[[int], float] = 1.0,
        target_rate: float | None = None,
        max_plate_nesting: float = math.inf,
    ) -> None:
        if not 0.0 <= commitment < math.inf:
            raise ValueError(f"`commitment` must be finite and not negative; got {commitment}.")
        self.commitment = commitment
        self._link: VectorLink | None = None
        super().__init__(1, beta=beta, target_rate=target_rate, max_plate_nesting=max_plate_nesting)

    def run(
        self,
        rng_key: Array,
        params: Mapping[str, Any],
        model: Callable,
        guide: Callable,
        args: tuple,
        kwargs: dict,
    ) -> tuple[Particles, dict[str, Any]]:
        """Run the programs, the model with the guide's vectors in place of its codes."""
        if self._link is None or not self._link.joins(model, guide):
            check_codebooks(model, guide)
            self._link = VectorLink(model, guide)
        with self._link:
            return super().run(rng_key, params, self._link.model, self._link.guide, args, kwargs)

    def find_layout(self, rng_key: Array, pair: Pair) -> Layout:
        """What depends on the codes is seen on the codes."""
        assert self._link is not None
        with self._link.closed():
            return find_layout(rng_key, pair, self.max_plate_nesting)

    def gain(
        self, particles: Particles, objective: Objective, beta: float | Array, memory: Any
    ) -> Gain:
        """The beta-ELBO along the straight path, less what holds vectors and codes together."""
        quantized = particles.extras["quantized"]
        if quantized is None:
            raise ValueError(
                "VQ_ELBO needs a guide that quantises vectors, with the deterministic sites "
                '"z.inputs" and "z.vectors" beside its site "z"; found none. Use '
                "VectorQuantizedGuide, or another loss."
            )
        value, precision = objective.beta_elbo.mean(0), particles.extras["precision"]
        squares, num_vectors = jnp.zeros((), value.dtype), jnp.zeros((), value.dtype)
        for inputs, vectors, penalty, mask, *_ in quantized.values():
            held = quantization_penalty(inputs, vectors, self.commitment, mask)
            if penalty is not None:
                penalty = jnp.broadcast_to(penalty, (*inputs.shape[:-1], 1))
                held = held + _mean_of_latents(penalty, mask)
            value = value - (precision * held).mean(0)
            squares = squares + jnp.square(inputs - vectors).sum()
            num_vectors = num_vectors + _number_of_latents(inputs, mask)
        for name, log_q in particles.extras["drawn"].items():
            value = value + refuse_gradient(jnp.zeros((), value.dtype), log_q, _no_gradient(name))
        return Gain(
            value,
            {
                "distance": squares / jnp.maximum(num_vectors, 1),
                **_usage_of(quantized),
            },
        )


def _no_gradient(name: str) -> str:
    """What is said of a site that the loss cannot train."""
    return (
        f"VQ_ELBO has no gradient for the distribution of the guide's site '{name}': it trains "
        "codes of vectors, and draws that are reparameterised. Leave a site of finite support to "
        'the model, marked infer={"enumerate": "parallel"}, which sums it out; relax it in both '
        f"programs, relax(..., sites=['{name}']); or let nothing that is learnt go into its "
        "distribution."
    )


def check_codebooks(model: Any, guide: Any) -> None:
    """Whether codes mean the same vectors to guide and model, where both hold a codebook.

    Raises:
        ValueError: If they hold two.
    """
    one = getattr(guide, "codebook", None)
    other = getattr(getattr(model, "decoder", None), "codebook", None)
    if one is not None and other is not None and not _are_one(one, other):
        raise ValueError(
            "`codebook` of the guide is another than that of the model's decoder, which would "
            "decode codes by vectors that nothing trains. Make one, and give it to both."
        )


def _are_one(one: Any, other: Any) -> bool:
    """Whether codebooks are the same one, or rules that say the same."""
    if one is other:
        return True
    name = getattr(one, "name", None)
    if name is not None and name == getattr(other, "name", None):
        return True
    names = ("by_rule", "num_codes", "embed_dim", "levels", "scale", "spherical")
    said, same = ([type(each), *(getattr(each, n, None) for n in names)] for each in (one, other))
    return said[1] is True and said == same and not hasattr(one, "codebooks")


def _number_of_latents(inputs: Array, mask: Array | None) -> int | Array:
    """How many vectors no mask silences."""
    if mask is None:
        return math.prod(inputs.shape[:-1])
    return jnp.broadcast_to(mask[..., 0], inputs.shape[:-1]).sum()


def _usage_of(quantized: dict[str, QuantizedSite]) -> dict[str, Array]:
    """Share of the codes that the batch uses, and their perplexity, in the mean over the tables."""
    found = [
        (*codes_in_use(codes, mask), site.num_codes.mean())
        for site in quantized.values()
        for codes, mask in site.tables
    ]
    shares, perplexities = zip(*((used / size, each) for used, each, size in found), strict=True)
    names = {"usage": shares, "perplexity": perplexities}
    return {name: jnp.stack(list(values)).mean() for name, values in names.items()}
