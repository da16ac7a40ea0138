"""`batch_size` cuts what has a row for each datum and nothing else: what all rows say, or refused.

The evidence of each datum is a sum over the states of its latent, by NumPy.
"""

import functools
import importlib

import numpy as np
import pytest

ROWS = 4
X = np.array([-1.0, 0.3, 0.8, 2.0])
MEANS = np.array([-1.0, 0.0, 1.5, 3.0])
WEIGHTS = np.array([0.4, 0.3, 0.2, 0.1])
CODES = np.array([3, 0, 2, 1])
SEEN = np.array([True, False, True, True])
LABELS, RATES = np.array([1.0, 0.0, 0.0, 1.0]), np.array([0.1, 0.4, 0.6, 0.8])
NORM = 0.5 * np.log(2 * np.pi)


class Language:
    """What the programs below are written in."""

    def __init__(self, name):
        pytest.importorskip("torch" if name == "pyro" else "jax")
        self.ppl = importlib.import_module(name)
        self.dist = importlib.import_module(f"{name}.distributions")
        self.np = importlib.import_module("torch" if name == "pyro" else "jax.numpy")
        self.mask = (self.ppl.poutine if name == "pyro" else self.ppl.handlers).mask
        self.diagnostics = importlib.import_module(f"{name}_dvae.diagnostics")
        self.keys = [] if name == "pyro" else [importlib.import_module("jax").random.key(0)]

    def rows_of(self, x, size, rows):
        """A plate of more rows than a batch has, which knows them or does not."""
        if rows is None:
            return self.ppl.plate("data", size or len(x), subsample_size=len(x))
        if self.keys:
            with self.ppl.handlers.substitute(data={"data": rows}):
                return self.ppl.plate("data", size, subsample_size=len(rows))
        return self.ppl.plate("data", size, subsample=rows)

    def mixture(self, x, weights, means, *, seen=True, labels=None, size=None, rows=None):
        """Each datum is of one of the components."""
        with self.rows_of(x, size, rows):
            z = self.ppl.sample("z", self.dist.Categorical(weights))
            with self.mask(mask=seen):
                self.ppl.sample("x", self.dist.Normal(means[z], 1.0), obs=x)
            if labels is not None:
                rates = self.np.asarray(RATES)[z]
                self.ppl.sample("y", self.dist.Bernoulli(rates), obs=labels)

    def guide(self, x, size=None, rows=None):
        with self.rows_of(x, size, rows):
            self.ppl.sample("z", self.dist.Categorical(logits=self.np.ones((len(x), ROWS))))

    def arrays(self, tree):
        if isinstance(tree, dict):
            return {name: self.arrays(leaf) for name, leaf in tree.items()}
        if isinstance(tree, tuple):
            return tuple(map(self.arrays, tree))
        return self.np.asarray(tree) if isinstance(tree, np.ndarray) else tree

    def gap(self, pair, data, batch_size):
        data = self.arrays(data)
        return self.diagnostics.posterior_gap(*self.keys, pair, *data, batch_size=batch_size)


@pytest.fixture(scope="module", params=["pyro", pytest.param("numpyro", marks=pytest.mark.thrifty)])
def language(request):
    return Language(request.param)


def joint(weights, seen=1.0):
    """Log-density of each datum and component."""
    return seen * (-0.5 * (X[:, None] - MEANS) ** 2 - NORM) + np.log(weights)


def evidence(weights, seen=1.0):
    return np.log(np.exp(joint(weights, seen)).sum(-1))


def of(call, guided=lambda *data: data[0]):
    """A pair of which the guide reads one of the arguments."""
    return lambda lang: (functools.partial(call, lang), lambda *data: lang.guide(guided(*data)))


def by_code(lang):
    return lang.np.asarray(BY_CODE)


def tables(lang):
    return lang.np.asarray(WEIGHTS), lang.np.asarray(MEANS)


UNIFORM = np.full(ROWS, 0.25)
BY_CODE = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4], UNIFORM, WEIGHTS])
RIGHT = {  # programs and arguments, which of them are cut, and the evidence
    "weights": (
        of(lambda lang, x, w: lang.mixture(x, w, tables(lang)[1])),
        (X, WEIGHTS),
        evidence(WEIGHTS),
    ),
    "equal weights": (
        *(of(lambda lang, x, w: lang.mixture(x, w, tables(lang)[1])), (X, UNIFORM)),
        evidence(UNIFORM),
    ),
    "first": (
        of(lambda lang, w, x: lang.mixture(x, w, tables(lang)[1]), lambda w, x: x),
        (WEIGHTS, X),
        evidence(WEIGHTS),
    ),
    "a shorter one first": (
        of(
            lambda lang, b, x: lang.mixture(x, tables(lang)[0], tables(lang)[1] + b.sum()),
            lambda b, x: x,
        ),
        (np.array([0.5, -0.25, -0.25]), X),
        evidence(WEIGHTS),
    ),
    "means": (
        of(lambda lang, x, m: lang.mixture(x, tables(lang)[0], m)),
        (X, MEANS),
        evidence(WEIGHTS),
    ),
    "both": (
        of(lambda lang, x, w, m: lang.mixture(x, w, m)),
        (X, WEIGHTS, MEANS),
        evidence(WEIGHTS),
    ),
    "looked up": (
        of(lambda lang, x, codes, table: lang.mixture(x, table[codes], tables(lang)[1])),
        (X, CODES, BY_CODE),
        evidence(BY_CODE[CODES]),
    ),
    "in its own order": (
        of(lambda lang, x, codes, table: lang.mixture(x, table[codes], tables(lang)[1])),
        (X, np.arange(ROWS), BY_CODE),
        evidence(BY_CODE),
    ),
    "of each datum": (
        of(lambda lang, x, w: lang.mixture(x, w, tables(lang)[1])),
        (X, BY_CODE),
        evidence(BY_CODE),
    ),
    "mask": (
        of(lambda lang, x, seen: lang.mixture(x, *tables(lang), seen=seen)),
        (X, SEEN),
        evidence(WEIGHTS, seen=SEEN[:, None]),
    ),
    "dict": (
        of(lambda lang, d: lang.mixture(d["x"], d["w"], tables(lang)[1]), lambda d: d["x"]),
        ({"w": WEIGHTS, "x": X},),
        evidence(WEIGHTS),
    ),
    "tuple": (
        of(lambda lang, size, d: lang.mixture(d[1], d[0], tables(lang)[1]), lambda size, d: d[1]),
        (ROWS, (WEIGHTS, X)),
        evidence(WEIGHTS),
    ),
    "labels": (
        of(lambda lang, y, x: lang.mixture(x, *tables(lang), labels=y), lambda y, x: x),
        (LABELS, X),
        np.log((np.exp(joint(WEIGHTS)) * np.where(LABELS[:, None] == 1, RATES, 1 - RATES)).sum(-1)),
    ),
}


SHORT = "weights", "looked up", "dict"


@pytest.mark.parametrize(
    "name", [n if n in SHORT else pytest.param(n, marks=pytest.mark.slow) for n in RIGHT]
)
def test_what_is_of_the_rows_is_cut(language, name):
    made, data, expected = RIGHT[name]
    for batch_size in (2,) if name in SHORT else (1, 2, 3):
        found = language.gap(made(language), data, batch_size)
        np.testing.assert_allclose(found.log_evidence, expected, rtol=1e-5, atol=1e-6)


def centred(lang, x):
    lang.mixture(x - x.mean(), *tables(lang))


def by_place(lang, x):
    lang.mixture(x, by_code(lang)[: len(x)], tables(lang)[1])


def of_all(lang, x):
    lang.mixture(x, by_code(lang), tables(lang)[1])


REFUSED = {
    "the mean of the data": (centred, "beside other rows a datum is otherwise .log_like"),
    "what is at its place": (by_place, "beside other rows a datum is otherwise .log_prior"),
    "rows of all data": (of_all, "the programs fail"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_other_rows_is_refused(language, name):
    program, words = REFUSED[name]
    pair = of(program)(language)
    for batch_size in (2, 3):
        with pytest.raises(ValueError, match=f"`batch_size` cuts .* x, of 4 rows, but .*{words}"):
            language.gap(pair, (X,), batch_size)
    language.gap(pair, (X,), None)


@pytest.mark.slow
def test_data_that_share_their_state_are_not_cut(language):
    def guide(x):
        return language.ppl.sample("z", language.dist.Categorical(tables(language)[0]))

    def model(x):
        loc = tables(language)[1][guide(x)]
        with language.ppl.plate("data", len(x)):
            language.ppl.sample("x", language.dist.Normal(loc, 1.0), obs=x)

    expected = np.log((WEIGHTS * np.exp((joint(WEIGHTS) - np.log(WEIGHTS)).sum(0))).sum())
    found = language.gap((model, guide), (X,), None)
    np.testing.assert_allclose(found.log_evidence, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="all data are one datum, so that 2 rows are no plate"):
        language.gap((model, guide), (X,), 2)


@pytest.mark.parametrize("batch_size", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_a_plate_of_all_data_weighs_them_once(language, batch_size):
    """A batch is a third of it, or a half, and stands for more; all batches are all data."""
    pair = (
        lambda x: language.mixture(x, *tables(language), size=6),
        lambda x: language.guide(x, size=6),
    )
    x = language.np.asarray(np.append(X, [0.1, 0.2]))
    found = language.diagnostics.importance_diagnostics(
        *language.keys, pair, x, num_particles=25, batch_size=batch_size
    )
    np.testing.assert_allclose(found.whole.elbo, found.elbo.sum(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_plate_that_is_given_its_rows_has_those_of_each_batch(language, batch_size):
    """A guide with parameters of each row, whose ELBO is a sum over states."""
    logits = np.random.default_rng(0).normal(size=(ROWS, ROWS))

    def guide(x, rows):
        with language.rows_of(x, ROWS, rows):
            fn = language.dist.Categorical(logits=language.np.asarray(logits)[rows])
            language.ppl.sample("z", fn)

    def model(x, rows):
        language.mixture(x, *tables(language), size=ROWS, rows=rows)

    found = language.gap((model, guide), (X, np.arange(ROWS)), batch_size)
    log_q = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = (np.exp(log_q) * (joint(WEIGHTS) - log_q)).sum(-1)
    np.testing.assert_allclose(found.elbo, expected, rtol=1e-5)
