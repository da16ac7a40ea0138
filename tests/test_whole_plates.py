"""A plate of all rows around a batch of `fit` is refused, with what to write; that then trains."""

import importlib

import numpy as np
import pytest

X = np.arange(20.0, dtype=np.float32)
SAID = r"`batch_size`: a batch has 5 of the 20 rows of the data, but plate 'data' takes all 20"


def programs_of(name, as_advised):
    """Model and guide, natively: a bit of each datum."""
    host = pytest.importorskip(name)
    dist = pytest.importorskip(f"{name}.distributions")

    def plate(x):
        return host.plate("data", 20, **({"subsample_size": len(x)} if as_advised else {}))

    def model(x):
        with plate(x):
            bit = host.sample("bit", dist.Bernoulli(0.5))
            host.sample("x", dist.Normal(9.0 * bit, 1.0), obs=x)

    def guide(x):
        with plate(x):
            host.sample("bit", dist.Bernoulli(logits=host.param("weight", 0.0 * x[:1]) * x))

    return model, guide


def train(name, model, guide, batch_size, data=(X,), loss=None):
    package = importlib.import_module(f"{name}_dvae")
    infer, fit = (
        importlib.import_module(f"{package.__name__}.{room}") for room in ("infer", "fit")
    )
    if name == "pyro":
        import pyro

        pyro.clear_param_store()
        svi = pyro.infer.SVI(
            model, guide, pyro.optim.Adam({"lr": 0.01}), loss or infer.Exact_ELBO()
        )
        return fit.fit(svi, *data, num_steps=2, batch_size=batch_size, progress=False)
    import jax
    from numpyro.optim import Adam

    svi, key = infer.SVI(model, guide, Adam(0.01), loss or infer.Exact_ELBO()), jax.random.key(0)
    return fit.fit(key, svi, *data, num_steps=2, batch_size=batch_size, progress=False)


@pytest.mark.thrifty
@pytest.mark.parametrize("name", ["pyro", "numpyro"])
def test_a_plate_of_all_rows_is_refused_and_the_fix_works(name):
    with pytest.raises(ValueError, match=SAID):
        train(name, *programs_of(name, as_advised=False), batch_size=5)
    whole = train(name, *programs_of(name, as_advised=False), batch_size=None)
    fixed = train(name, *programs_of(name, as_advised=True), batch_size=20)
    assert fixed.losses[0] == pytest.approx(whole.losses[0], rel=1e-6)
    assert len(train(name, *programs_of(name, as_advised=True), batch_size=5).losses) == 2


@pytest.mark.thrifty
@pytest.mark.parametrize("name", ["pyro", "numpyro"])
def test_parameters_of_rows_want_to_know_whose_they_are(name):
    """A plate that has as many rows as whatever batch says nothing of them."""
    host, package = pytest.importorskip(name), f"{name}_dvae"
    dist = importlib.import_module(f"{name}.distributions")
    auto = importlib.import_module(f"{package}.guides").AutoDiscrete
    truncated = importlib.import_module(f"{package}.infer").TruncatedGuide

    def model(x):
        with host.plate("data", len(x)):
            bit = host.sample("bit", dist.Bernoulli(0.5))
            host.sample("x", dist.Normal(9.0 * bit, 1.0), obs=x)

    said = r"`batch_size`: plate 'data' of site 'bit' has the 5 rows of a batch, whosever they are"
    for guide in (auto(model), truncated(model, 2)):
        with pytest.raises(ValueError, match=f"{said}, but {type(guide).__name__} has param"):
            train(name, model, guide, batch_size=5)
    assert len(train(name, model, auto(model), batch_size=None).losses) == 2

    def shared(x):
        with host.plate("five", 5):  # as many as the batch has by chance
            bits = host.sample("bits", dist.Bernoulli(0.5))
        with host.plate("data", 20, subsample_size=len(x)):
            host.sample("x", dist.Normal(bits.sum(-1)[..., None] - 1.0, 1.0), obs=x)

    assert len(train(name, shared, auto(shared), batch_size=5).losses) == 2


@pytest.mark.thrifty
@pytest.mark.parametrize("name", ["pyro", "numpyro"])
def test_guides_of_the_host_want_to_know_whose_rows_they_have(name):
    """As many rows as the batch has, rows that the guide does not see; the fix trains each row."""
    host = pytest.importorskip(name)
    dist = importlib.import_module(f"{name}.distributions")
    auto = importlib.import_module(f"{name}.infer.autoguide")

    def model(x, rows=None):
        with plate(x, rows) if rows is not None else host.plate("data", len(x)):
            z = host.sample("z", dist.Normal(0.0, 10.0))
            host.sample("x", dist.Normal(z, 0.1), obs=x)

    def plate(x, rows):
        if name == "pyro":
            return host.plate("data", 20, subsample=rows)
        with host.handlers.substitute(data={"data": rows}):
            return host.plate("data", 20, subsample_size=len(x))

    loss = {"loss": host.infer.Trace_ELBO()}
    kinds = auto.AutoNormal, auto.AutoDelta, auto.AutoMultivariateNormal
    said = r"`batch_size`: plate 'data' of site 'z' has the 5 rows of a batch, whosever they are"
    for kind in kinds:
        with pytest.raises(ValueError, match=f"{said}, but {kind.__name__} has parameters"):
            train(name, model, kind(model), 5, **loss)
    hidden = auto.AutoNormal(model)
    with pytest.raises(ValueError, match="'z' has the rows of a batch in the model, but in the g"):
        train(name, model, lambda *args: hidden(*args), 5, **loss)
    with_rows = {"data": (X, np.arange(20)), **loss}
    said = r"plate 'data' of site 'z' takes 5 of 20 rows, but Auto\w+ does not know which these are"
    for kind in kinds:
        with pytest.raises(ValueError, match=f"{said}.*create_plates="):
            train(name, model, kind(model), 5, **with_rows)
    fixed = auto.AutoNormal(model, create_plates=plate)
    assert len(train(name, model, fixed, 5, **with_rows).losses) == 2


@pytest.mark.thrifty
@pytest.mark.parametrize("name", ["pyro", "numpyro"])
def test_parameters_of_places_in_a_batch_are_refused(name):
    """Of a function, as of guide and model; those that rows choose are not."""
    host = pytest.importorskip(name)
    dist = importlib.import_module(f"{name}.distributions")
    zeros = importlib.import_module("torch" if name == "pyro" else "jax.numpy").zeros

    def made(of_model, of_guide):
        def model(x, rows):
            with host.plate("data", 20, subsample_size=len(x)):
                bit = host.sample("bit", dist.Bernoulli(0.5))
                host.sample("x", dist.Normal(9.0 * bit + of_model(x, rows), 1.0), obs=x)

        def guide(x, rows):
            with host.plate("data", 20, subsample_size=len(x)):
                host.sample("bit", dist.Bernoulli(logits=of_guide(x, rows)))

        return model, guide

    def of_place(x, rows):
        return host.param("place", zeros(len(x)))

    def of_row(x, rows):
        return host.param("row", zeros(20))[rows]

    data = {"data": (X, np.arange(20))}
    for kind, pair in (("guide", (of_row, of_place)), ("model", (of_place, of_row))):
        said = rf"parameter \[?'place'\]? of the {kind} has the shape \(5,\) with the 5 rows"
        with pytest.raises(ValueError, match=said):
            train(name, *made(*pair), 5, **data)
    assert len(train(name, *made(of_row, of_row), 5, **data).losses) == 2


@pytest.mark.thrifty
@pytest.mark.parametrize("name", ["pyro", "numpyro"])
def test_a_model_of_one_number_of_rows_is_told_of(name):
    """A plate of five around five data of twenty: nothing can tell that it is by chance."""
    host = pytest.importorskip(name)
    dist = importlib.import_module(f"{name}.distributions")
    auto = importlib.import_module(f"{name}_dvae.guides").AutoDiscrete
    zeros = importlib.import_module("torch" if name == "pyro" else "jax.numpy").zeros

    def model(x):
        with host.plate("data", 5):
            bit = host.sample("bit", dist.Bernoulli(0.5))
            host.sample("x", dist.Normal(9.0 * bit, 1.0), obs=x)

    with pytest.warns(UserWarning, match="has as many rows as the batch, and the model fails"):
        train(name, model, auto(model), batch_size=5)

    def guide(x):
        logits = host.param("logits", zeros(5))
        with host.plate("data", 5):
            host.sample("bit", dist.Bernoulli(logits=logits + x))

    with pytest.warns(UserWarning, match=r"the guide fails with another .* entries, .*logits.*:"):
        train(name, model, guide, batch_size=5)
