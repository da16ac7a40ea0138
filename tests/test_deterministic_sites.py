"""Deterministic sites have the draws where they grow with them, whatever sizes agree by chance."""

import numpy as np
import pytest
from test_diagnostics import diagnose, program_of

NUM_DRAWS = 10  # as long as the table, the data and the weights


def model(ppl, data):
    table = ppl.deterministic("table", data["table"])
    weights = ppl.sample("w", ppl.dist.Normal(0.0, 1.0).expand([NUM_DRAWS]).to_event(1))
    ppl.deterministic("doubled", 2.0 * weights)
    with ppl.plate("data", NUM_DRAWS):
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=ppl.zeros(1)[0]))
        ppl.deterministic("shifted", z + data["x"])
        ppl.sample("x", ppl.dist.Normal(z + table.mean(), 1.0), obs=data["x"])
    ppl.deterministic("total", z.sum(-1))
    ppl.deterministic("all", 3.0 * z)


def guide(ppl, data):
    ppl.sample("w", ppl.dist.Normal(0.0, 1.0).expand([NUM_DRAWS]).to_event(1))
    with ppl.plate("data", NUM_DRAWS):
        ppl.sample("z", ppl.dist.Bernoulli(logits=ppl.zeros(NUM_DRAWS)))


DATA = {"x": np.linspace(-1, 1, NUM_DRAWS), "table": np.arange(20.0).reshape(10, 2)}


@pytest.mark.thrifty
@pytest.mark.parametrize("num_draws", [NUM_DRAWS, 2])
def test_values_and_dims(shim, num_draws):
    case = shim.Case(program_of(model, guide, {}, DATA))
    options = {"num_draws": num_draws, "groups": ("posterior",)}
    found = diagnose(shim, "to_arviz", case, **options)["posterior"]
    z, w = found["z"].values, found["w"].values
    expected = {
        "table": (
            ("table_dim_0", "table_dim_1"),
            np.broadcast_to(DATA["table"], (1, num_draws, 10, 2)),
        ),
        "doubled": (("doubled_dim_0",), 2 * w),
        "shifted": (("data",), z + DATA["x"]),
        "total": ((), z.sum(-1)),
        "all": (("all_dim_0",), 3.0 * z),
    }
    for name, (dims, values) in expected.items():
        assert found[name].dims == ("chain", "draw", *dims)
        np.testing.assert_allclose(found[name].values, values)


NUM_DATA = 4


def looking_left(ppl, data):
    """What it computes of one draw would be of all draws, were there others in front."""
    with ppl.plate("data", NUM_DATA):
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=ppl.zeros(1)[0]))
        ppl.sample("x", ppl.dist.Normal(z, 1.0), obs=data["x"])
    ppl.deterministic("mean", z.mean())
    ppl.deterministic("first", 2.0 * z[0])
    ppl.deterministic("sums", z.cumsum(0))
    ppl.deterministic("flat", z.reshape(-1) > 0.5)


def of_four(ppl, data):
    with ppl.plate("data", NUM_DATA):
        ppl.sample("z", ppl.dist.Bernoulli(logits=ppl.zeros(NUM_DATA)))


@pytest.mark.parametrize("num_draws", [NUM_DATA, 7])
def test_what_is_computed_is_of_one_draw(shim, num_draws):
    case = shim.Case(program_of(looking_left, of_four, {}, {"x": np.linspace(-1, 1, NUM_DATA)}))
    options = {"num_draws": num_draws, "groups": ("posterior",)}
    found = diagnose(shim, "to_arviz", case, **options)["posterior"]
    z = found["z"].values
    expected = {"mean": z.mean(-1), "first": 2 * z[..., 0], "sums": z.cumsum(-1), "flat": z > 0.5}
    for name, values in expected.items():
        assert found[name].shape == values.shape
        np.testing.assert_allclose(found[name].values, values)
