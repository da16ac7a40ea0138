"""Parts that a method may meet, in both packages: codebooks, decoders of them, and guides."""

from functools import cache
from types import SimpleNamespace

import numpy as np

L, V, D, EVENT = 2, 4, 4, (3,)
# Close together, so that the first inputs choose several: from one code of all no table learns.
TABLE = 0.3 * np.random.default_rng(1).normal(size=(6, D)).astype("f")
STACKS = ("residual", "grouped", "scales")


def codebook_of(nets, asarray, decoder):
    def table(num_codes=V, width=D, **options):
        return nets.Codebook(num_codes, width, table=asarray(TABLE[:num_codes, :width]), **options)

    return {
        "table": table,
        "averages": lambda: table(decay=0.9),
        "other": lambda: table(6),
        "scalars": lambda: nets.FiniteScalars((2, 2)),
        "bits": lambda: nets.BinaryCodes(2),
        "residual": lambda: nets.ResidualCodebook([table(), table()]),
        "grouped": lambda: nets.GroupedCodebook([table(V, 2), table(V, 2)]),
        "scales": lambda: nets.HierarchicalCodebook([table(), table()], (1, 2)),
        "mlp": table,  # of the guide alone
        "binary": table,
    }[decoder]()


def parts(package, asarray, guide, decoder):
    """A model and a guide of it."""
    nets, models = package("nets"), package("models")
    codebook = codebook_of(nets, asarray, decoder)
    network = network_of(package, codebook, decoder)
    likelihood = models.GaussianLikelihood(variance=0.5, learn=False)
    num_latents = 3 if decoder == "scales" else L * codebook.num_blocks
    if decoder == "binary":
        prior = models.BernoulliPrior(L)
    else:
        prior = models.UniformPrior(num_latents, codebook.num_codes)
    model = models.DiscreteVAE(network, prior, likelihood)
    return model, guide_of(package, guide, decoder, codebook, num_latents, model)


def network_of(package, codebook, decoder):
    nets = package("nets")
    if decoder == "mlp":
        return nets.MLPDecoder(L, V, EVENT, embed_dim=D, hidden=(8,))
    if decoder == "binary":
        return nets.MLPDecoder(L, None, EVENT, hidden=(8,))
    if decoder == "scales":
        return nets.HierarchicalDecoder(codebook, networks(package.name).joined(D, 2 * D))
    network = nets.MLPDecoder(L * codebook.embed_dim, None, EVENT, hidden=(8,))
    return nets.CodebookDecoder(codebook, network)


def guide_of(package, guide, decoder, codebook, num_latents, model):
    nets, guides = package("nets"), package("guides")
    width, num_codes = codebook.embed_dim, codebook.num_codes
    if guide == "truncated":
        return package("infer").TruncatedGuide(model, 4)
    if guide == "autoregressive":
        context = networks(package.name).on_grid(num_latents, 8)
        transformer = nets.CausalTransformer(num_latents, num_codes, embed_dim=8, num_heads=2)
        return guides.AutoregressiveGuide(context, transformer, grid=(1, num_latents))
    if guide == "independent" and decoder == "binary":
        return guides.IndependentGuide(nets.MLPEncoder(EVENT, L, None, hidden=(8,)), binary=True)
    if guide == "independent":
        return guides.IndependentGuide(nets.MLPEncoder(EVENT, num_latents, num_codes, hidden=(8,)))
    if guide == "quantised" and decoder == "scales":
        made = networks(package.name)
        encoders = made.scale(1, D), made.scale(2, D, above=D)
        return guides.HierarchicalGuide(encoders, codebook)
    encoder = nets.MLPEncoder(EVENT, L, width, hidden=(8,))
    if guide == "head":
        return guides.IndependentGuide(nets.CodebookEncoder(encoder, codebook))
    return guides.VectorQuantizedGuide(encoder, codebook)


@cache
def networks(name):
    return {"pyro": torch_networks, "numpyro": flax_networks}[name]()


def torch_networks():
    import torch
    from torch import nn

    class Joined(nn.Module):
        """A dense layer over all that it is called with."""

        def __init__(self, width, shape, num_own):
            super().__init__()
            self.layer, self.shape = nn.Linear(width, int(np.prod(shape))), shape
            self.num_own = num_own  # dims of one datum in the first argument

        def forward(self, first, *others):
            batch = first.shape[: first.dim() - self.num_own]
            flat = [array.reshape(*batch, -1) for array in (first, *others)]
            return self.layer(torch.cat(flat, -1)).reshape(*batch, *self.shape)

    width = int(np.prod(EVENT))
    return SimpleNamespace(
        joined=lambda one, other: Joined(one + other, EVENT, 2),
        scale=lambda size, dim, above=0: Joined(width + above, (size, dim), 1),
        on_grid=lambda size, dim: Joined(width, (1, size, dim), 1),
    )


def flax_networks():
    import flax.linen as nn
    import jax.numpy as jnp

    class Joined(nn.Module):
        """A dense layer over all that it is called with."""

        shape: tuple
        num_own: int  # dims of one datum in the first argument

        @nn.compact
        def __call__(self, first, *others):
            batch = first.shape[: first.ndim - self.num_own]
            flat = [array.reshape(*batch, -1) for array in (first, *others)]
            outputs = nn.Dense(int(np.prod(self.shape)))(jnp.concatenate(flat, -1))
            return outputs.reshape(*batch, *self.shape)

    return SimpleNamespace(
        joined=lambda one, other: Joined(EVENT, 2),
        scale=lambda size, dim, above=0: Joined((size, dim), 1),
        on_grid=lambda size, dim: Joined((1, size, dim), 1),
    )
