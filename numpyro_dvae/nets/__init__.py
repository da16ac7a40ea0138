"""Networks: arrays in, logits out; any number of leading particle and batch dims.

All are flax (linen) modules. `mlp` holds the multi-layer perceptrons, `transformer` the patch
encoder and the causal transformer over codes, `attention` their blocks, `registration` the tie
to NumPyro's parameters.
"""

from numpyro_dvae.nets.mlp import MLPDecoder, MLPEncoder
from numpyro_dvae.nets.registration import register
from numpyro_dvae.nets.transformer import CausalTransformer, PatchEncoder

__all__ = ["CausalTransformer", "MLPDecoder", "MLPEncoder", "PatchEncoder", "register"]
