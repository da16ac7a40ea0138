"""ArviZ without the notice of its next version, which it gives once a day and on no other."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    import arviz

__all__ = ["arviz"]
