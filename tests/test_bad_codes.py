"""What are no codes, and tables of no numbers: refused by name, or NaN where compiled."""

import numpy as np
import pytest
from codebook_lab import lab

L, D, V = 2, 4, 8
BOOKS = {
    "table": lambda nets: nets.Codebook(V, D),
    "averages": lambda nets: nets.Codebook(V, D, decay=0.9),
    "scalars": lambda nets: nets.FiniteScalars((2, 4)),
    "bits": lambda nets: nets.BinaryCodes(3),
    "linear": lambda nets: nets.LinearCodebook(V, D),
    "residual": lambda nets: nets.ResidualCodebook([nets.Codebook(V, D) for _ in "ab"]),
}
BAD = {-1: np.array([[-1, 0]]), V: np.array([[1, V]])}
books = pytest.mark.parametrize("kind", BOOKS)
codes = pytest.mark.parametrize("found", BAD)


def refused(name, found):
    message = f"`{name}` must hold codes from 0 to {V - 1}; got {found}."
    return pytest.raises(ValueError, match=message)


@pytest.mark.thrifty
@books
@codes
def test_codebooks_refuse_what_are_no_codes(backend, kind, found):
    book = lab(backend, BOOKS[kind])
    with refused("z", found):
        book.call("__call__", BAD[found])
    good = book.call("__call__", np.array([[0, V - 1]]))
    assert np.isfinite(good).all()


@books
@codes
def test_compiled_look_ups_of_what_are_no_codes_are_nan(kind, found):
    jax = pytest.importorskip("jax")
    nets = pytest.importorskip("numpyro_dvae.nets")
    book = lab(numpyro_backend(nets), BOOKS[kind])
    vectors = book._run(lambda: jax.jit(book.codebook)(jax.numpy.asarray(BAD[found])), keep=False)
    is_bad = (BAD[found] < 0) | (BAD[found] >= V)
    np.testing.assert_array_equal(np.isnan(np.asarray(vectors)).all(-1), is_bad)
    np.testing.assert_array_equal(np.isnan(np.asarray(vectors)).any(-1), is_bad)


def numpyro_backend(nets):
    from types import SimpleNamespace

    return SimpleNamespace(name="numpyro", module=lambda _: nets)


@pytest.mark.parametrize("prior", ["UniformPrior", "CategoricalPrior"])
@codes
def test_compiled_log_probs_of_what_are_no_codes_are_minus_infinity(prior, found):
    jax = pytest.importorskip("jax")
    from numpyro import handlers

    models = pytest.importorskip("numpyro_dvae.models")

    def log_prob(z):
        program = handlers.seed(models.CodeModel(getattr(models, prior)(L, V)), jax.random.key(0))
        return handlers.trace(program).get_trace(z)["z"]["fn"].log_prob(z)

    assert float(jax.jit(log_prob)(BAD[found])[0]) == -np.inf
    good = float(jax.jit(log_prob)(np.array([[0, V - 1]]))[0])
    assert good == pytest.approx(-L * np.log(V), rel=1e-5)


@codes
def test_models_and_the_way_out_refuse_what_are_no_codes(backend, found):
    nets, models = backend.module("nets"), backend.module("models")
    decoder = nets.MLPDecoder(L, V, (3,), embed_dim=2, hidden=())
    prior = models.CategoricalPrior(L, V)
    model = models.DiscreteVAE(decoder, prior, models.GaussianLikelihood())
    assert model.num_codes == V
    bad = backend.asarray(BAD[found])
    with refused("z", found):
        called(backend, lambda: model.reconstruct(bad))
    with refused("codes", found):
        backend.module("fit").reconstruct_data((model, lambda x: None), BAD[found])
    with refused("codes", found):
        called(backend, lambda: models.CodeModel(prior)(bad))


def called(backend, program):
    if backend.name == "pyro":
        return program()
    from jax.random import key
    from numpyro.handlers import seed

    return seed(program, key(0))()


def test_a_table_of_no_numbers_is_refused(backend):
    table = backend.asarray(np.full((V, D), np.nan, np.float32))
    with pytest.raises(ValueError, match="`table` must hold finite numbers"):
        backend.module("nets").Codebook(V, D, table=table)


@pytest.mark.parametrize("kind", ["table", "averages"])
def test_a_table_of_other_sizes_is_refused(kind):
    """As of weights that another codebook was saved with; Torch refuses them as it loads them."""
    pytest.importorskip("jax")
    nets = pytest.importorskip("numpyro_dvae.nets")
    book = lab(numpyro_backend(nets), BOOKS[kind])
    decay = book.codebook.decay
    other = lab(numpyro_backend(nets), lambda nets: nets.Codebook(2 * V, D, decay=decay))
    book.values = other.values
    with pytest.raises(ValueError, match=rf"must have shape \({V}, {D}\); got \({2 * V}, {D}\)"):
        book.call("__call__", np.array([[0, V - 1]]))
    with pytest.raises(ValueError, match=rf"must have shape \({V}, {D}\); got \({2 * V}, {D}\)"):
        book.quantize(np.zeros((3, D), np.float32), learn=True)
