"""NumPyro's `SVI` whose first state is compiled at once.

Step by step, each operation of a start is compiled by itself, which takes up to six times as long.
For tests of what comes after the start; those of `SVI` and `fit` themselves start as a user does.
"""

import jax

from numpyro_dvae.infer import SVI

__all__ = ["QuickSVI"]


class QuickSVI(SVI):
    """As `SVI`."""

    def init(self, rng_key, *args, **kwargs):
        init = super().init
        return jax.jit(lambda key: init(key, *args, **kwargs))(rng_key)
