"""Programs that NumPyro's test suite holds for invalid: each loss refuses them, and says why.

Errors that NumPyro's own handlers raise while a program runs come through as they are.
"""

import pytest

pytest.importorskip("jax")

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from any_numpyro import KEY, SAMPLED, quiet

from numpyro_dvae.infer import DisARM_ELBO, Exact_ELBO

LOSSES = [Exact_ELBO, *SAMPLED, DisARM_ELBO]
INVALID = []


def invalid(words, guide=None):
    """Add a model and its guide, which is the model itself if it is left out."""

    def add(model):
        INVALID.append(pytest.param(model, guide or model, words, id=model.__name__))
        return model

    return add


def coin(name="z", **options):
    return numpyro.sample(name, dist.Bernoulli(0.4), **options)


def nothing():
    pass


def one_coin():
    coin()


@invalid("'z'.*neither observed nor sampled by the guide.*marginalise", nothing)
def not_in_the_guide():
    coin()


@invalid("site 'z' of the guide is not a latent site of the model.*Rename", one_coin)
def not_in_the_model():
    pass


@invalid("site 'z' of the guide is not a latent site of the model", one_coin)
def observed_in_the_model():
    coin(obs=1.0)


@invalid("'z'.*neither observed nor sampled by the guide.*mark .*'parallel'", nothing)
def summed_one_after_the_other():
    coin(infer={"enumerate": "sequential"})


def twice():
    coin()
    coin()


@invalid("unique names", one_coin)
def twice_in_the_model():
    twice()


@invalid("unique names", twice)
def twice_in_the_guide():
    coin()


def of_event(shape, event_dim):
    def guide():
        numpyro.sample("z", dist.Bernoulli(0.4 * jnp.ones(shape)).to_event(event_dim))

    return guide


@invalid(r"'z' has event shape \(2, 1\) in the guide, but \(2,\)", of_event((2, 1), 2))
def event_dims_disagree():
    of_event((2,), 1)()


@invalid(r"'z' has event shape \(2, 1\) in the guide, but \(1, 2\)", of_event((2, 1), 2))
def event_shapes_disagree():
    of_event((1, 2), 2)()


def plated(size, dim=-1, name="data"):
    def guide():
        with numpyro.plate(name, size, dim=dim):
            coin()

    return guide


@invalid("plate 'data' has 3 rows in the guide, but 2 in the model", plated(3))
def plate_sizes_disagree():
    plated(2)()


@invalid(r"'z' is under 'data' \(dim -2, size 2\) in the guide.*dim -1", plated(2, -2))
def plate_dims_disagree():
    plated(2)()


@invalid(r"'z' is under 'rows' .* in the guide, but under 'data'", plated(2, name="rows"))
def plate_names_disagree():
    plated(2)()


@invalid("'z' is under no plate in the guide, but under 'data'", one_coin)
def no_plate_in_the_guide():
    plated(2)()


@invalid("'z'|broadcast|data")
def two_rows_in_a_plate_of_five():
    with numpyro.plate("data", 10, subsample_size=5):
        numpyro.sample("z", dist.Bernoulli(0.4).expand([2]))


@invalid("'z'|broadcast|data")
def a_row_too_many():
    with numpyro.plate("data", 5):
        numpyro.sample("z", dist.Bernoulli(0.4).expand([6]))


@invalid("broadcast|outer|'u'")
def the_outer_size_at_the_inner_dim():
    with numpyro.plate("outer", 10, subsample_size=5, dim=-2):
        coin()
        with numpyro.plate("inner", 11, subsample_size=6, dim=-1):
            numpyro.sample("u", dist.Bernoulli(0.4).expand([5, 5]))


def given():
    coin(obs=1.0)


@invalid("Site z must be sampled in trace", given)
def observed_in_the_guide_alone():
    coin()


def relaxed_coin():
    numpyro.sample("z", dist.RelaxedBernoulli(0.5, logits=0.3))


@invalid("discrete in the model .*, but continuous in the guide .RelaxedBernoulli", relaxed_coin)
def relaxed_in_the_guide_alone():
    coin()


@pytest.mark.parametrize(("model", "guide", "words"), INVALID)
def test_invalid_programs_are_refused(model, guide, words):
    for loss in LOSSES:
        with pytest.raises((ValueError, RuntimeError, AssertionError), match=words):
            quiet(lambda loss=loss: loss().loss(KEY, {}, model, guide))


def test_values_alone_are_refused_as_steps_are():
    for loss in LOSSES:
        with pytest.raises(ValueError, match="neither observed nor sampled"):
            loss().loss(KEY, {}, one_coin, nothing)
    with pytest.raises(ValueError, match="max_plate_nesting"):
        Exact_ELBO(max_plate_nesting=0.0).loss(KEY, {}, plated(2), plated(2))
