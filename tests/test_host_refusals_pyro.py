"""Programs that Pyro's test suite holds for invalid: each loss refuses them, and says why.

Errors that Pyro's own handlers raise while a program runs come through as they are.
"""

import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
from any_pyro import SAMPLED, fresh, quiet  # noqa: E402

from pyro_dvae.infer import DisARM_ELBO, Exact_ELBO  # noqa: E402

__all__ = ["fresh"]  # a fixture of every test here

LOSSES = [Exact_ELBO, *SAMPLED, DisARM_ELBO]
INVALID = []


def invalid(words, guide=None):
    """Add a model and its guide, which is the model itself if it is left out."""

    def add(model):
        INVALID.append(pytest.param(model, guide or model, words, id=model.__name__))
        return model

    return add


def coin(name="z", **options):
    return pyro.sample(name, dist.Bernoulli(0.4), **options)


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
    coin(obs=torch.tensor(1.0))


@invalid("'z'.*neither observed nor sampled by the guide.*mark .*'parallel'", nothing)
def summed_one_after_the_other():
    coin(infer={"enumerate": "sequential"})


@invalid("Multiple sample sites named 'z'", one_coin)
def twice_in_the_model():
    coin()
    coin()


def twice():
    coin()
    coin()


@invalid("Multiple sample sites named 'z'", twice)
def twice_in_the_guide():
    coin()


@invalid("Multiple sample sites named 'z'")
def twice_in_turns():
    for _ in pyro.plate("turns", 2):
        coin()


def of_event(shape, event_dim):
    def guide():
        pyro.sample("z", dist.Bernoulli(0.4 * torch.ones(shape)).to_event(event_dim))

    return guide


@invalid(r"'z' has event shape \(2, 1\) in the guide, but \(2,\)", of_event((2, 1), 2))
def event_dims_disagree():
    of_event((2,), 1)()


@invalid(r"'z' has event shape \(2, 1\) in the guide, but \(1, 2\)", of_event((2, 1), 2))
def event_shapes_disagree():
    of_event((1, 2), 2)()


@invalid("'z'.*batch dim -1 is under no plate.*to_event")
def batch_without_a_plate():
    of_event((2,), 0)()


def plated(size, dim=-1, name="data"):
    def guide():
        with pyro.plate(name, size, dim=dim):
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


@invalid("hape mismatch inside plate\\('data'\\)")
def two_rows_in_a_plate_of_five():
    with pyro.plate("data", 10, 5):
        pyro.sample("z", dist.Bernoulli(0.4).expand_by([2]))


@invalid("hape mismatch inside plate\\('data'\\)")
def a_row_too_many():
    with pyro.plate("data", 10, 5) as rows:
        pyro.sample("z", dist.Bernoulli(0.4).expand_by([1 + len(rows)]))


@invalid("'z'.*log-density has shape|hape mismatch inside plate")
def the_outer_size_at_the_inner_dim():
    with pyro.plate("outer", 10, 5) as outer:
        pyro.sample("z", dist.Bernoulli(0.4).expand_by([len(outer), 1]))
        with pyro.plate("inner", 11, 6):
            pyro.sample("u", dist.Bernoulli(0.4).expand_by([len(outer)]))


@invalid("hape mismatch inside plate|log-density has shape")
def the_outer_size_twice():
    with pyro.plate("outer", 10, 5) as outer:
        coin()
        with pyro.plate("inner", 11, 6):
            pyro.sample("u", dist.Bernoulli(0.4).expand_by([len(outer), len(outer)]))


@invalid("collide at dim=-1")
def plates_at_one_dim():
    with pyro.plate("outer", 10, 5, dim=-2), pyro.plate("middle", 11, 6):
        with pyro.plate("inner", 12, 7, dim=-1):
            coin()


def wrong_table():
    with pyro.plate("data", 10, 5):
        pyro.sample("z", dist.Bernoulli(pyro.param("p", 0.4 * torch.ones(4), event_dim=0)))


@invalid("invalid shape of pyro.param", wrong_table)
def parameters_of_another_plate():
    with pyro.plate("data", 10, 5):
        coin()


def unobserved():
    coin()
    with pyro.plate("data", 2):
        pyro.sample("x_unobserved", dist.Normal(torch.zeros(2, 3), 1.0).to_event(1))


@invalid("Invalid obs_mask shape", unobserved)
def mask_of_event_dims():
    z, mask = coin(), torch.tensor([[True, False, True], [False, False, True]])
    with pyro.plate("data", 2):
        fn = dist.Normal(z * torch.ones(2, 3), 1.0).to_event(1)
        pyro.sample("x", fn, obs=torch.zeros(2, 3), obs_mask=mask)


def given():
    coin(obs=torch.tensor(1.0))


@invalid("site z must be sampled in trace", given)
def observed_in_the_guide_alone():
    coin()


@invalid("Expected parameter|constraint")
def parameters_out_of_range():
    pyro.sample("z", dist.Bernoulli(torch.tensor(1.4)))


@pytest.mark.parametrize(("model", "guide", "words"), INVALID)
def test_invalid_programs_are_refused(model, guide, words):
    for loss in LOSSES:
        pyro.clear_param_store()
        with pytest.raises((ValueError, RuntimeError), match=words):
            quiet(lambda loss=loss: loss().loss_and_grads(model, guide))


def test_values_alone_are_refused_as_steps_are():
    for loss in LOSSES:
        with pytest.raises(ValueError, match="neither observed nor sampled"):
            loss().loss(one_coin, nothing)
    with pytest.raises(ValueError, match="max_plate_nesting"):
        Exact_ELBO(max_plate_nesting=0.0).loss(plated(2), plated(2))
