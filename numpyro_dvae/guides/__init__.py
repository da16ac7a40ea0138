"""Guides q(z | x): networks that read the latents off x, and parameters of each datum.

Start with `amortised`: what a guide is, and how one of one's own is made. The others differ in
their posterior alone:

- `independent`: all latents at once, each by itself;
- `autoregressive`: one latent after the other; `mnist_guide` is the published one;
- `quantised`: the codes of quantised vectors, without randomness;
- `hierarchical`: the same at several scales, each given those that are coarser.

For any model there is `automatic`, without networks: `AutoDiscrete`. Of its parts `families` has
the kinds of latents, `counts` the numbers of those that count, `places` where these are, `tables`
the parameters, `ruling` what the data rule out of them, by `joint_states`.

The room may import `ops`, `distributions`, `nets`, `models` and `programs`, and nothing of the
package that is above it.

Words of this room:

- *amortised*: by networks shared by all data, rather than by parameters of each datum;
- *posterior*: the distribution that the guide gives, q(z | x), near p(z | x) once it is trained;
- *encoder*: the network that reads x; what it returns is up to the guide;
- *place*: a cell of a latent's plates and event dims, which has one value;
- *parent*, of a latent: one that its posterior depends on;
- *step*: a run of the guide as a program, as a loss does it;
- *to learn*, of a codebook: that its moving averages advance.
"""

from numpyro_dvae.guides.amortised import AmortisedGuide
from numpyro_dvae.guides.automatic import AutoDiscrete
from numpyro_dvae.guides.autoregressive import AutoregressiveGuide, mnist_guide
from numpyro_dvae.guides.hierarchical import HierarchicalGuide
from numpyro_dvae.guides.independent import IndependentGuide
from numpyro_dvae.guides.quantised import VectorQuantizedGuide

__all__ = [
    "AmortisedGuide",
    "AutoDiscrete",
    "AutoregressiveGuide",
    "HierarchicalGuide",
    "IndependentGuide",
    "VectorQuantizedGuide",
    "mnist_guide",
]
