"""Codes drawn around an encoder's vectors: the stochastic quantiser of SQ-VAE [1], under any loss.

In place of the nearest code, code k of a latent has the logit ``-|z - b_k|² / 2 s²``, with z the
encoder's vector, b_k that of the code and s a scale that is learnt: while s is large, codes are
drawn from all around; as it falls, the nearest one is certain. The guide has a posterior as any
other, so that each loss and each relaxation trains it, and the codebook by it.

References:
    [1] Takida et al. SQ-VAE: variational Bayes on discrete representation with self-annealed
        stochastic quantization. ICML, 2022. Equation 6.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from numpyro_dvae.nets.codebooks import Codebook
from numpyro_dvae.nets.grids import check_grid, from_grid
from numpyro_dvae.nets.inputs import check_width
from numpyro_dvae.nets.quantizers import Quantizer
from numpyro_dvae.nets.registration import declare, mask_of_latents, own_name, run_encoder
from numpyro_dvae.ops.arguments import checked

__all__ = ["CodebookEncoder"]

_LEAST = 1e-6  # added to a standard deviation


class CodebookEncoder:
    """An encoder of logits by a codebook: ``IndependentGuide(CodebookEncoder(...))``.

    Args:
        network: From data ``(*batch, *event)`` to vectors ``(*batch, L, D)``, or on a grid.
        codebook: `Codebook` with vectors that learn by gradient, `LinearCodebook` or one without
            parameters; the model's decoder may hold the same one, as `CodebookDecoder`.
        scale: s at the start, in the units of the vectors; None is half of the standard deviation
            of those of the first batch, at some of which the codebook starts.
        grid: Sizes of the grid that the latents lie on, where the network returns one.
        channels_first: Whether the width of vectors is before the grid.

    Raises:
        ValueError: If `scale` is not positive, or the codebook follows moving averages, or is put
            together of several.
    """

    @checked
    def __init__(
        self,
        network: Callable,
        codebook: Quantizer,
        *,
        scale: float | None = None,
        grid: Sequence[int] | None = None,
        channels_first: bool = False,
    ) -> None:
        check_head(codebook, scale)
        self.network, self.codebook = network, codebook
        self.grid, self.channels_first = check_grid(grid, channels_first, network), channels_first
        self.scale = scale
        self.name: str | None = None

    def __call__(self, x: Shaped[Array, "*batch_input"]) -> Float[Array, "*batch L V"]:
        """Logits of every code of every latent."""
        outputs = run_encoder(self.network, x)
        vectors = from_grid(outputs, self.grid, self.channels_first, "network")
        check_width(vectors, self.codebook.embed_dim, "network")
        mask = mask_of_latents()
        if isinstance(self.codebook, Codebook):
            self.codebook.begin(vectors, mask)
        name = f"{own_name(self, 'guide.scale')}$log"
        start = spread_of(vectors, mask) if self.scale is None else jnp.full((), self.scale)
        log_scale = declare(name, lambda _: jnp.log(start), needs_key=False)
        return self.codebook.logits(vectors, jnp.exp(log_scale))


def spread_of(
    vectors: Float[Array, "*batch D"], mask: Bool[Array, "*#batch"] | None
) -> Float[Array, ""]:
    """Half of the standard deviation of vectors, in the mean over their channels; never 0.

    Where a mask silences all of them it is 1.
    """
    kept = jnp.broadcast_to(True if mask is None else mask, vectors.shape[:-1]).reshape(-1, 1)
    flat = jax.lax.stop_gradient(vectors).reshape(-1, vectors.shape[-1])
    spread = 0.5 * (jnp.sqrt(flat.var(0, where=kept).mean()) + _LEAST)
    return jnp.where(kept.any(), spread, 1.0)


def check_head(codebook: Quantizer, scale: float | None) -> None:
    """Whether a codebook can be one of logits, and s one to start at.

    Raises:
        ValueError: If not.
    """
    if scale is not None and not 0.0 < scale < math.inf:
        raise ValueError(f"`scale` must be positive and finite, or None; got {scale}.")
    if getattr(codebook, "decay", None) is not None:
        raise ValueError(
            "`codebook` must learn by gradient, as logits to its vectors train it; got one of "
            "moving averages. Use decay=None."
        )
    if codebook.num_blocks > 1 or codebook.by_scale:
        raise ValueError(
            f"`codebook` must be a single one, of which codes are drawn at once; got "
            f"{type(codebook).__name__}, whose stages depend on what was drawn before."
        )
