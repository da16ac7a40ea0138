"""`AutoDiscrete` says what it is said to say: every value beside an enumeration in NumPy."""

import itertools

import numpy as np
import pytest
from automatic_lab import lab as make_lab
from scipy import stats

RNG = np.random.default_rng(0)
X = RNG.normal(size=3) + 1.0
START = np.array([0.3, 0.6, 0.1])
TABLE = np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
NUM_VALUES = {"b": 2, "c": 3, "n": 3, "k": 3}
NUM_PARAMS = {"b": 1, "c": 3, "n": 3, "k": 3}


@pytest.fixture(params=["pyro", "numpyro"])
def lab(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return make_lab(request.param)


def counting(ppl, x):
    """One latent of each family: a Bernoulli, codes that depend on it, a Binomial, a Poisson."""
    with ppl.plate("data", len(x), dim=-1):
        b = ppl.sample("b", ppl.dist.Bernoulli(ppl.array(START)))
        c = ppl.sample("c", ppl.dist.Categorical(ppl.array(TABLE)[ppl.integer(b)]))
        n = ppl.sample("n", ppl.dist.Binomial(2, ppl.array(0.4)))
        k = ppl.sample("k", ppl.dist.Poisson(ppl.array(0.3)))
        ppl.sample("x", ppl.dist.Normal(b + 2 * c + n - k, 1.0), obs=x)


def states():
    return list(itertools.product(*(range(NUM_VALUES[name]) for name in "bcnk")))


def log_joint(x, start, b, c, n, k):
    prior = [
        stats.bernoulli.logpmf(b, start),
        np.log(TABLE[b, c]),
        stats.binom.logpmf(n, 2, 0.4),
        stats.poisson.logpmf(k, 0.3),
    ]
    return sum(prior) + stats.norm.logpdf(x, b + 2 * c + n - k)


def log_softmax(logits):
    logits = np.concatenate([[0.0], logits]) if len(logits) == 1 else logits
    return logits - np.log(np.exp(logits).sum())


def negative_elbo(log_q):
    """Of ``log_q(row, b, c, n, k)``, by enumeration."""
    total = 0.0
    for row, (x, start) in enumerate(zip(X, START, strict=True)):
        for state in states():
            q = log_q(row, *state)
            total -= np.exp(q) * (log_joint(x, start, *state) - q)
    return total


def random_params(*, parents):
    shapes = {name: (3, NUM_PARAMS[name]) for name in "bcnk"}
    for name, size in parents.items():
        shapes[name] = (3, size, NUM_PARAMS[name])
    return {name: RNG.normal(size=shape) for name, shape in shapes.items()}


@pytest.mark.thrifty
def test_it_starts_at_the_prior(lab):
    model = lab.bind(counting)
    guide = lab.guide(model, structure="model", num_values={"k": 3})
    params = lab.start(guide, lab.array(X))
    value, _ = lab.loss(lab.exact(), model, guide, params, lab.array(X))
    poisson = stats.poisson.pmf(range(3), 0.3)

    def log_q(row, b, c, n, k):
        prior = log_joint(X[row], START[row], b, c, n, k)
        return prior - stats.norm.logpdf(X[row], b + 2 * c + n - k) - np.log(poisson.sum())

    np.testing.assert_allclose(value, negative_elbo(log_q), rtol=1e-6)
    np.testing.assert_allclose(guide.cut_off["k"], 1 - poisson.sum(), rtol=1e-5)


@pytest.mark.thrifty
def test_the_start_of_a_product_has_the_marginals_of_the_prior(lab):
    guide = lab.guide(lab.bind(counting), num_values={"k": 3})
    params = lab.start(guide, lab.array(X))
    marginal = np.stack([(1 - s) * TABLE[0] + s * TABLE[1] for s in START])
    found = np.exp([log_softmax(row) for row in params["c"]])
    spread = np.sqrt(START * (1 - START) / 64)[:, None] * np.abs(TABLE[1] - TABLE[0])
    assert (np.abs(found - marginal) < 5 * spread + 1e-12).all()


@pytest.mark.thrifty
def test_the_loss_of_a_product_is_that_of_an_enumeration(lab):
    model, params = lab.bind(counting), random_params(parents={})
    guide = lab.guide(model, num_values={"k": 3})
    value, grads = lab.loss(lab.exact(), model, guide, params, lab.array(X))

    def log_q(row, *state):
        each = zip("bcnk", state, strict=True)
        return sum(log_softmax(params[name][row])[code] for name, code in each)

    np.testing.assert_allclose(value, negative_elbo(log_q), rtol=1e-9)
    step, losses = 1e-6, []
    for sign in (1, -1):
        params["n"][1, 2] += sign * step
        losses.append(negative_elbo(log_q))
        params["n"][1, 2] -= sign * step
    np.testing.assert_allclose(grads["n"][1, 2], (losses[0] - losses[1]) / (2 * step), rtol=1e-6)


PARENTS = {"model": {"c": ("b",)}, "chain": {"c": ("b",), "n": ("c",), "k": ("n",)}}


@pytest.mark.thrifty
@pytest.mark.parametrize("structure", PARENTS)
def test_each_latent_is_given_its_parents_by_a_table(lab, structure):
    model, parents = lab.bind(counting), PARENTS[structure]
    sizes = {name: NUM_VALUES[above] for name, (above,) in parents.items()}
    params = random_params(parents=sizes)
    guide = lab.guide(model, structure=structure, num_values={"k": 3})
    value, _ = lab.loss(lab.exact(), model, guide, params, lab.array(X))

    def log_q(row, *state):
        codes, total = dict(zip("bcnk", state, strict=True)), 0.0
        for name, code in codes.items():
            logits = params[name][row]
            if name in parents:
                logits = logits[codes[parents[name][0]]]
            total += log_softmax(logits)[code]
        return total

    np.testing.assert_allclose(value, negative_elbo(log_q), rtol=1e-9)


def ragged(ppl, x, rows, lengths):
    """Some of four data, each with one latent or with two."""
    with ppl.plate("data", 4, dim=-1, subsample=rows):
        z = ppl.sample("z", ppl.one_hot(ppl.array(TABLE[0])))
        with ppl.mask(mask=lengths > 1):
            g = ppl.sample("g", ppl.dist.Geometric(ppl.array(0.7)))
            ppl.sample("x", ppl.dist.Normal(g + z @ ppl.array(np.arange(3.0)), 1.0), obs=x)


@pytest.mark.thrifty
def test_a_minibatch_has_its_rows_and_a_mask_takes_latents_out(lab):
    model, rows, lengths = lab.bind(ragged), np.array([3, 0]), np.array([2, 1])
    params = {"z": RNG.normal(size=(4, 3)), "g": RNG.normal(size=(4, 4))}
    guide = lab.guide(model, num_values={"g": 4})
    args = [lab.array(values) for values in (X[:2], rows, lengths)]
    loss, grads = lab.loss(lab.exact(), model, guide, params, *args)
    expected = 0.0
    for x, row, length in zip(X, rows, lengths, strict=False):
        q = {name: log_softmax(values[row]) for name, values in params.items()}
        for z, g in itertools.product(range(3), range(4)):
            weight = np.exp(q["z"][z] + q["g"][g])
            gain = np.log(TABLE[0, z]) - q["z"][z]
            if length > 1:
                gain += stats.geom.logpmf(g + 1, 0.7) - q["g"][g] + stats.norm.logpdf(x, g + z)
            expected -= 4 / 2 * weight * gain
    np.testing.assert_allclose(loss, expected, rtol=1e-9)
    assert (grads["z"][[1, 2]] == 0).all()
    assert np.abs(grads["g"][[0, 1, 2]]).max() < 1e-15
    assert (grads["z"][rows] != 0).all()
    assert (grads["g"][3] != 0).all()


def survival(ppl, caught):
    """An animal lives on or dies, for good; it is seen, rightly or not."""
    with ppl.plate("animals", len(caught), dim=-1):
        alive = 1.0
        for t in range(caught.shape[1]):
            alive = ppl.sample(f"alive.{t}", ppl.dist.Bernoulli(0.7 * alive * ppl.array(1.0)))
            ppl.sample(f"caught.{t}", ppl.dist.Bernoulli(0.1 + 0.3 * alive), obs=caught[:, t])


@pytest.mark.thrifty
def test_the_guide_of_the_models_dependence_reaches_the_evidence(lab):
    """Dead animals stay dead: what the model rules out has no probability, at any parameters."""
    model, caught = lab.bind(survival), np.array([[1.0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    guide = lab.guide(model, structure="model")
    losses, _ = lab.train(lab.exact(), model, guide, 100, lab.array(caught), lr=0.3)
    evidence = 0.0
    for row in caught:
        forward = np.array([0.0, 1.0])  # dead, alive
        for seen in row:
            forward = np.array([forward[0] + 0.3 * forward[1], 0.7 * forward[1]])
            forward = forward * np.array([0.1, 0.4] if seen else [0.9, 0.6])
        evidence += np.log(forward.sum())
    np.testing.assert_allclose(losses[-1], -evidence, atol=5e-3)
    assert np.isfinite(losses).all()
    assert losses[0] > -evidence + 0.1


def mixture(ppl, x):
    loc = ppl.sample("loc", ppl.dist.Normal(ppl.array(np.zeros(2)), 3.0).to_event(1))
    with ppl.plate("data", len(x), dim=-1):
        z = ppl.sample("z", ppl.dist.Bernoulli(ppl.array(0.5)))
        ppl.sample("x", ppl.dist.Normal(loc[..., 0] * z + loc[..., 1] * (1 - z), 1.0), obs=x)


@pytest.mark.thrifty
def test_a_list_joins_it_with_a_guide_of_continuous_latents(lab):
    model, x = lab.bind(mixture), np.array([-2.1, -1.9, 2.0, 2.2, 1.8])
    guides = lab.primitives.list(model, ["z"])
    guides.append(lab.guide(model, noise=0.5))
    guides.append(lab.primitives.normal(lab.primitives.block(model, hide=["z"])))
    elbo = lab.module("infer").Reinforce_ELBO(8)
    losses, params = lab.train(elbo, model, guides, 150, lab.array(x), lr=0.1)
    assert np.mean(losses[-50:]) < np.mean(losses[:20]) - 3
    held = {"z": np.asarray(params["z_auto_logits"])} if params else lab.start(guides[0], x)
    sides = np.sign(held["z"][:, 0])
    assert sides[0] == sides[1] == -sides[2]
    assert (sides[2:] == sides[2]).all()


@pytest.mark.thrifty
def test_medians_and_quantiles_are_of_numbers_and_modes_of_all(lab):
    model = lab.bind(counting)
    guide, x = lab.guide(model, num_values={"k": 3}), lab.array(X)
    params = {
        "b": np.array([[2.0], [-2.0], [2.0]]),
        "c": np.log(np.array([[0.1, 0.2, 0.7]] * 3)),
        "n": np.log(np.array([[0.45, 0.1, 0.45]] * 3)),
        "k": np.log(np.array([[0.3, 0.3, 0.4]] * 3)),
    }
    lab.start(guide, x)
    mode = lab.summary(guide, "mode", params, args=(x,))
    assert {name: value.tolist() for name, value in mode.items()} == {
        "b": [1, 0, 1],
        "c": [2] * 3,
        "n": [0] * 3,
        "k": [2] * 3,
    }
    median = lab.summary(guide, "median", params, args=(x,))
    assert {n: v.tolist() for n, v in median.items()} == {
        "b": [1, 0, 1],
        "n": [1] * 3,
        "k": [1] * 3,
    }
    found = lab.summary(guide, "quantiles", params, [0.1, 0.9], args=(x,))
    assert found["k"].tolist() == [[0] * 3, [2] * 3]
    assert found["b"].shape == (2, 3)


def continuous(ppl, x):
    ppl.sample(
        "x", ppl.dist.Normal(ppl.sample("loc", ppl.dist.Normal(ppl.array(0.0), 1.0)), 1.0), obs=x
    )


def unbounded(ppl, x):
    n = ppl.sample("n", ppl.dist.Poisson(ppl.array(2.0)))
    m = ppl.sample("m", ppl.dist.Binomial(n, ppl.array(0.5)))
    ppl.sample("x", ppl.dist.Normal(m + ppl.array(0.0), 1.0), obs=x)


REFUSED = [
    (continuous, {}, r"no discrete latent .* \['loc'\]"),
    (unbounded, {}, r"'n' \(Poisson\).* is infinite.*num_values=\{'n': V\}.* as 16"),
    (unbounded, {"n": 16}, r"'m' \(Binomial.*depends on other latents.*num_values=\{'m': V\}"),
    (unbounded, {"n": 16, "m": 16, "x": 2}, r"`num_values` has 'x'.*\['m', 'n'\]"),
    (counting, {"k": 3, "c": 4}, r"'c' .* has 3 values; got 4"),
]


@pytest.mark.thrifty
@pytest.mark.parametrize(("model", "num_values", "message"), REFUSED)
def test_what_it_cannot_guide_is_refused_by_name(lab, model, num_values, message):
    guide = lab.guide(lab.bind(model), num_values=num_values)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        lab.start(guide, lab.array(X))


def test_arguments_that_cannot_be_used_are_refused(lab):
    for options, message in [
        ({"structure": "tree"}, "`structure` must be one of"),
        ({"num_values": 16}, "`num_values` must be a mapping .* got 16"),
        ({"num_values": {"z": 1}}, "`num_values` must be whole numbers of at least 2; got 1"),
        ({"noise": -1.0}, "`noise` must be finite and not negative"),
    ]:
        with pytest.raises(ValueError, match=message):
            lab.guide(lab.bind(counting), **options)


def sized(ppl, x, size):
    with ppl.plate("data", size, dim=-1):
        k = ppl.sample("k", ppl.dist.Poisson(ppl.array(0.3)))
    ppl.sample("x", ppl.dist.Normal(k.sum(-1), 1.0), obs=x.sum(-1))


@pytest.mark.thrifty
def test_other_data_are_refused(lab):
    guide = lab.guide(lab.bind(sized), num_values={"k": 3})
    lab.start(guide, lab.array(X), 3)
    with pytest.raises(ValueError, match=r"'k' is under 'data' .*size 4\), but .*size 3\)"):
        lab.start(guide, lab.array(X[:3]), 4)


@pytest.mark.thrifty
def test_a_prior_that_is_cut_short_is_told(lab):
    guide = lab.guide(lab.bind(unbounded), num_values={"n": 3, "m": 30})
    with pytest.warns(UserWarning, match=r"3 values of site 'n' leave out 0.323"):
        lab.start(guide, lab.array(X))


@pytest.mark.thrifty
def test_a_call_that_is_refused_leaves_nothing(lab):
    guide = lab.guide(lab.bind(lambda ppl, model, x: model(ppl, x)), num_values={"k": 3})
    with pytest.raises(ValueError, match="no discrete latent"):
        lab.start(guide, continuous, lab.array(X))
    assert set(lab.start(guide, counting, lab.array(X))) == set("bcnk")


def test_a_branch_of_python_is_refused_by_numpyro_with_the_way_out():
    lab = make_lab("numpyro") if pytest.importorskip("jax") else None
    model = lab.bind(lambda ppl: 1.0 if ppl.sample("z", ppl.dist.Bernoulli(0.3)) else 0.0)
    with pytest.raises(ValueError, match=r"asks for the value of an array, by `if`.*jnp\.where"):
        lab.start(lab.guide(model))


def test_a_loop_over_a_plate_is_as_one_in_python():
    """Pyro's own guides refuse it; in NumPyro a plate is no loop."""
    pytest.importorskip("torch")
    lab = make_lab("pyro")
    params = {"z_0": np.array([0.4])}
    params |= {f"z_{i}": np.array([[0.1 * i], [-0.4]]) for i in (1, 2)}

    def model(turns):
        for i in turns():
            z = lab.pyro.sample(f"z_{i}", lab.primitives.dist.Bernoulli(lab.array(0.3)))
            lab.pyro.sample(f"x_{i}", lab.primitives.dist.Normal(z, 1.0), obs=lab.array(X[i]))

    found = [
        lab.loss(lab.exact(), model, lab.guide(model, structure="chain"), params, turns)
        for turns in (lambda: lab.pyro.plate("data", 3), lambda: range(3))
    ]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    for name, slope in found[0][1].items():
        np.testing.assert_allclose(slope, found[1][1][name], rtol=1e-10)


def test_parameters_that_another_guide_has_left_are_refused():
    """Pyro's store keeps them; NumPyro's are passed."""
    pytest.importorskip("torch")
    lab = make_lab("pyro")
    model, x = lab.bind(counting), lab.array(X)
    lab.start(lab.guide(model, num_values={"k": 3}), x)
    with pytest.raises(ValueError, match=r"'logits\.c' has shape \(3, 3\).*clear_param_store"):
        lab.guide(model, structure="model", num_values={"k": 3})(x)


def test_parameters_of_other_places_are_refused():
    """One dim of size 1 less, and rows would be taken of the event."""
    jax, numpyro = pytest.importorskip("jax"), pytest.importorskip("numpyro")
    from numpyro_dvae.guides import AutoDiscrete
    from numpyro_dvae.infer import Exact_ELBO

    def model():
        with numpyro.plate("items", 1, dim=-2), numpyro.plate("people", 1, dim=-1):
            a = numpyro.sample("a", numpyro.distributions.Bernoulli(0.3))
        with numpyro.plate("people", 1, dim=-1):
            probs = jax.numpy.asarray(TABLE)[a.sum(-2, keepdims=True)][..., None, :]
            codes = numpyro.distributions.Categorical(probs.repeat(2, -2))
            numpyro.sample("b", codes.to_event(1))

    guide, a = AutoDiscrete(model), np.zeros((1, 1, 1))
    logits = np.array([[0.3, 0.1, -0.4], [0.7, -0.2, 0.1]])

    @jax.jit
    def loss(b):
        params = {"a_auto_logits": a, "b_auto_logits": b}
        return Exact_ELBO().loss(jax.random.key(0), params, model, guide)

    log_a, log_b = log_softmax(np.zeros(1)), [log_softmax(row) for row in logits]
    expected = 0.0
    for i, j, k in itertools.product(range(2), range(3), range(3)):
        log_q = log_a[i] + log_b[0][j] + log_b[1][k]
        log_p = stats.bernoulli.logpmf(i, 0.3) + np.log(TABLE[i, j] * TABLE[i, k])
        expected -= np.exp(log_q) * (log_p - log_q)
    np.testing.assert_allclose(loss(logits.reshape(1, 1, 2, 3)), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"'b_auto_logits' has shape \(1, 2, 3\)"):
        loss(logits.reshape(1, 2, 3))
