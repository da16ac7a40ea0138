"""ArviZ 0.23 or 1, without the notice of the next version, and what one calls on our data."""

import warnings

import matplotlib as mpl
import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    import arviz

__all__ = ["arviz", "call_all", "dataset", "first_only", "group_names"]

FIRST = arviz.__version__.startswith("0.")  # what follows has another name in ArviZ 1
first_only = pytest.mark.skipif(not FIRST, reason="holds of ArviZ 0.23")


def group_names(idata):
    return set(idata.groups() if FIRST else idata.children)


def dataset(idata, group):
    return idata[group] if FIRST else idata[group].to_dataset()


def call_all(idata, observed, latent, some):
    """ArviZ's numbers and pictures of one site each, all warnings errors but its own."""
    mpl.use("Agg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = arviz.summary(idata, var_names=[latent], kind="stats")
        assert np.isfinite(summary["mean"].astype(float)).all()
        interval = arviz.hdi(dataset(idata, "posterior")[[latent]])[latent]
        assert (np.diff(interval, axis=-1) >= 0).all()
        weights = idata["sample_stats"]["log_weight"].stack(__sample__=("chain", "draw"))
        if FIRST:
            assert len(arviz.psislw(weights)[1]) == len(weights)
            warnings.simplefilter("ignore", DeprecationWarning)  # ArviZ's, of Matplotlib 3.11
            # Ties give the stock k̂ of infinity, as in `test_importance`.
            warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto")
            loo = arviz.loo(idata, var_name=observed, pointwise=True)
            assert np.isfinite(loo.elpd_loo)
            arviz.plot_khat(loo)
            arviz.plot_ppc(idata, var_names=[observed], num_pp_samples=20)
            arviz.plot_posterior(idata, var_names=[latent], coords=some)
        else:  # its `loo` and `psislw` raise where all weights tie
            warnings.filterwarnings("ignore", ".* look (binary|discrete)")  # its advice
            arviz.plot_ppc_dist(idata, var_names=[observed], num_samples=20)
            arviz.plot_dist(idata, var_names=[latent], coords=some)
    mpl.pyplot.close("all")
