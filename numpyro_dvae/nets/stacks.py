"""Codebooks of several: in turn (residual) or side by side (grouped).

Each part has its own block of latents: the codes of the first part come first, ``(*batch, n)``
with n the sum over parts, and one prior is over all of them. All parts have as many codes, since a
site has one number of values, and any of them may be put together of several itself.

References:
    [1] Lee et al. Autoregressive image generation using residual quantization. CVPR, 2022.
    [2] Yang et al. HiFi-Codec: group-residual vector quantization. arXiv 2305.02765, 2023.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from numpyro_dvae.nets.quantizers import Quantized, Quantizer

__all__ = ["GroupedCodebook", "ResidualCodebook", "Stack"]


class Stack(Quantizer):
    """Several quantisers, each with a block of latents."""

    def __init__(self, codebooks: Sequence[Quantizer], embed_dim: int) -> None:
        self.codebooks = tuple(codebooks)
        self.name: str | None = None
        for place, codebook in enumerate(codebooks):
            codebook.holder = self, place  # which names its parameters and state
        self.num_codes, self.embed_dim = codebooks[0].num_codes, embed_dim
        self.by_rule = any(codebook.by_rule for codebook in codebooks)
        self.num_blocks = sum(codebook.num_blocks for codebook in codebooks)

    def train(self, mode: bool = True) -> Quantizer:
        """Let the state of all parts follow, or not."""
        for codebook in self.codebooks:
            codebook.train(mode)
        return super().train(mode)

    @property
    def code_dim(self) -> int:
        """The width of a code, which all parts have."""
        return self.codebooks[0].code_dim

    @property
    def decay(self) -> float | None:
        """The decay of the first part whose table is moving averages; None without one."""
        decays = (getattr(codebook, "decay", None) for codebook in self.codebooks)
        return next((decay for decay in decays if decay is not None), None)

    def rows(self) -> Array:
        """Refuse: there are several codebooks, with a table each; ask `codebooks`."""
        raise ValueError(
            f"{type(self).__name__} has no table of all its codes: ask its `codebooks`."
        )

    def look_up(self, codes: Shaped[Array, "*batch n"]) -> Float[Array, "*batch n d"]:
        """The vectors of codes, each by the part that its latent is of."""
        parts = zip(self.codebooks, self._split(codes, -1), strict=True)
        return jnp.concatenate([codebook.look_up(block) for codebook, block in parts], -2)

    def mix(self, weights: Float[Array, "*batch n V"]) -> Float[Array, "*batch n d"]:
        """The vectors of relaxed codes, each by the part that its latent is of."""
        parts = zip(self.codebooks, self._split(weights, -2), strict=True)
        return jnp.concatenate([codebook.mix(block) for codebook, block in parts], -2)

    def logits(
        self, inputs: Float[Array, "*batch n d"], scale: float | Float[Array, ""]
    ) -> Float[Array, "*batch n V"]:
        """The logits of each part, of inputs that `quantize` has returned."""
        parts = zip(self.codebooks, self._split(inputs, -2), strict=True)
        return jnp.concatenate([codebook.logits(block, scale) for codebook, block in parts], -2)

    def entropies(
        self,
        inputs: Float[Array, "*batch n d"],
        scale: float | Float[Array, ""],
        mask: Bool[Array, "*#batch #n"] | None = None,
    ) -> Float[Array, "*batch n"]:
        """The entropies of each part, of inputs that `quantize` has returned."""
        parts = zip(self.codebooks, self._split(inputs, -2), strict=True)
        return jnp.concatenate(
            [codebook.entropies(block, scale, mask) for codebook, block in parts], -1
        )

    def blocks(self, values: Shaped[Array, "*batch n"]) -> list[Array]:
        """Numbers of latents, apart by the single table that they are of."""
        parts = zip(self.codebooks, self._split(values, -1), strict=True)
        return [block for codebook, part in parts for block in codebook.blocks(part)]

    def join(self, vectors: Float[Array, "*batch n d"]) -> Float[Array, "*batch L D"]:
        """What a decoder makes of the vectors of all parts."""
        parts = zip(self.codebooks, self._split(vectors, -2), strict=True)
        return self._joined([codebook.join(block) for codebook, block in parts])

    @abstractmethod
    def _joined(self, vectors: list[Array]) -> Array: ...

    def _sizes(self, num_latents: int) -> list[int]:
        """How many of the latents are each part's."""
        shares = [codebook.num_blocks for codebook in self.codebooks]
        size, left = divmod(num_latents, sum(shares))
        if left:
            raise ValueError(
                f"{type(self).__name__} has {sum(shares)} codebooks with a block of latents each; "
                f"got {num_latents} latents, which do not divide."
            )
        return [size * share for share in shares]

    def _split(self, values: Array, axis: int) -> Sequence[Array]:
        """The block of each part."""
        ends = np.cumsum(self._sizes(values.shape[axis]))[:-1]
        return jnp.split(values, ends, axis)


class ResidualCodebook(Stack):
    """Codebooks in turn: each quantises what those before it have left over [1].

    An input is ``e_1 + e_2 + ...`` in the end, and has a latent of each codebook. The gradient to
    the input is the sum of those of all stages.

    Args:
        codebooks: Two or more, of the same width and number of codes.

    Raises:
        ValueError: If they differ in these.
    """

    def __init__(self, codebooks: Sequence[Quantizer]) -> None:
        check_parts(codebooks)
        super().__init__(codebooks, codebooks[0].embed_dim)

    def quantize(
        self,
        inputs: Float[Array, "*batch L D"],
        *,
        learn: bool = False,
        mask: Bool[Array, "*#batch #L"] | None = None,
    ) -> Quantized:
        """What each stage is given, its codes and vectors."""
        found = []
        for codebook in self.codebooks:
            found.append(codebook.quantize(inputs, learn=learn, mask=mask))
            vectors = jax.lax.stop_gradient(codebook.join(found[-1].vectors))
            inputs = inputs - vectors
        return stacked(found)

    def _joined(self, vectors: list[Array]) -> Array:
        return jnp.stack(vectors).sum(0)


class GroupedCodebook(Stack):
    """Codebooks side by side: each quantises its own channels [2].

    Args:
        codebooks: Two or more, of the same width and number of codes; the inputs are as wide as
            all of them together.

    Raises:
        ValueError: If they differ in these; on a call, if the inputs do not divide into them.
    """

    def __init__(self, codebooks: Sequence[Quantizer]) -> None:
        check_parts(codebooks)
        super().__init__(codebooks, sum(codebook.embed_dim for codebook in codebooks))

    def quantize(
        self,
        inputs: Float[Array, "*batch L D"],
        *,
        learn: bool = False,
        mask: Bool[Array, "*#batch #L"] | None = None,
    ) -> Quantized:
        """The channels of each group, their codes and vectors."""
        _check_groups(inputs.shape[-1], self.embed_dim, len(self.codebooks))
        groups = jnp.split(inputs, len(self.codebooks), -1)
        parts = zip(self.codebooks, groups, strict=True)
        return stacked([part.quantize(group, learn=learn, mask=mask) for part, group in parts])

    def _joined(self, vectors: list[Array]) -> Array:
        return jnp.concatenate(vectors, -1)


def stacked(found: Sequence[Quantized]) -> Quantized:
    """Blocks of latents, one after the other."""
    return Quantized(
        jnp.concatenate([each.inputs for each in found], -2),
        jnp.concatenate([each.codes for each in found], -1),
        jnp.concatenate([each.vectors for each in found], -2),
    )


def check_parts(codebooks: Sequence[Quantizer]) -> None:
    """Refuse codebooks of several sizes or scales, or one of moving averages twice."""
    if not isinstance(codebooks, Sequence):
        raise ValueError(
            f"`codebooks` must be a list of two or more; got {type(codebooks).__name__}."
        )
    others = [type(part).__name__ for part in codebooks if not isinstance(part, Quantizer)]
    if others:
        raise ValueError(
            f"`codebooks` must be quantisers, as Codebook or FiniteScalars; got {others}."
        )
    found = [(part.num_codes, part.embed_dim, part.code_dim) for part in codebooks]
    if len(found) < 2 or len(set(found)) > 1:
        raise ValueError(
            "`codebooks` must be two or more of one number of codes, one width and one width of a "
            f"code, which all latents of a site share; got {found}."
        )
    if any(codebook.by_scale for codebook in codebooks):
        raise ValueError("`codebooks` of several scales hold others, but are not held themselves.")
    moving = [id(one) for part in codebooks for one in _singles(part) if one.decay is not None]
    if len(set(moving)) < len(moving):
        raise ValueError(
            "`codebooks` hold one of moving averages twice, which would forget twice in a step. "
            "Make one for each, or one that learns by gradient, decay=None, which they may share."
        )


def _singles(codebook: Any) -> list[Any]:
    """The codebooks that a quantiser is put together of."""
    parts = getattr(codebook, "codebooks", None)
    if parts is None:
        return [codebook] if hasattr(codebook, "decay") else []
    return [one for part in parts for one in _singles(part)]


def _check_groups(width: int, wanted: int, count: int) -> None:
    if width != wanted:
        raise ValueError(
            f"`inputs` of width {width} do not divide into {count} groups of {wanted // count} "
            f"channels. Let the encoder return vectors of width {wanted}."
        )
