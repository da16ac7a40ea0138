"""Steps of a `scan`: the dims of what is in them, draws without a gradient, weights of a step."""

import contextlib
import itertools

import numpy as np
import pytest

jax = pytest.importorskip("jax")
numpyro = pytest.importorskip("numpyro")
import jax.numpy as jnp  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
import optax  # noqa: E402
from any_numpyro import KEY, assert_mean, draws_of, normal  # noqa: E402
from numpyro import handlers  # noqa: E402
from numpyro.contrib.control_flow import scan  # noqa: E402

from numpyro_dvae.diagnostics import importance_diagnostics  # noqa: E402
from numpyro_dvae.infer import (  # noqa: E402
    DAPS_ELBO,
    SVI,
    Exact_ELBO,
    Reinforce_ELBO,
    Truncated_ELBO,
    TruncatedGuide,
    WakeSleep_ELBO,
)

LOGITS, PRIOR = np.array([0.3, -0.5, 0.2]), np.array([1.5, 0.0, -1.0])
X = np.array([[0.3, -1.0], [1.4, 0.2], [-0.6, 0.5]])


def steps_under(shape, *, is_model, turned=False, logits=LOGITS):
    """A bit a step, whose log-odds have these dims, and data that it moves."""

    def step(before, now):
        logit, x = now
        z = numpyro.sample("z", dist.Bernoulli(logits=jnp.reshape(logit + before, shape)))
        z = z.reshape(())
        if is_model:
            with numpyro.plate("data", 2):
                numpyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=x)
        return z, None

    logits = jnp.asarray(PRIOR if is_model else logits)
    scan(step, 0, (logits, jnp.asarray(X)), reverse=turned)


STATES = np.array(list(itertools.product((0, 1), repeat=3)))


def of_chain(logits, turned):
    """The log-probability of each state, whose log-odds are one more after a 1."""
    zeros = np.zeros((8, 1), int)
    before = [STATES[:, 1:], zeros] if turned else [zeros, STATES[:, :-1]]
    odds = logits + np.concatenate(before, 1)
    return (STATES * odds - np.logaddexp(0, odds)).sum(1)


def of_q(turned):
    return of_chain(LOGITS, turned)


def of_prior(turned):
    return of_chain(PRIOR, turned)


def terms(turned):
    """Log p - log q of each state."""
    seen = normal(X, STATES[..., None]).sum((1, 2))
    return seen + of_prior(turned) - of_q(turned)


def programs(of_model, of_guide, turned):
    model = lambda: steps_under(of_model, is_model=True, turned=turned)  # noqa: E731
    return model, lambda: steps_under(of_guide, is_model=False, turned=turned)


@pytest.mark.parametrize(
    ("of_model", "of_guide", "turned"),
    [((), (1,), False), ((1,), (), False), ((1, 1), (), True), ((), (), True)],
)
def test_dims_of_a_step_may_differ_in_guide_and_model(of_model, of_guide, turned):
    """As where the one takes a sum that keeps the dims of a plate; steps never meet these."""
    loss = Exact_ELBO().loss(KEY, {}, *programs(of_model, of_guide, turned))
    np.testing.assert_allclose(loss, -(np.exp(of_q(turned)) * terms(turned)).sum(), rtol=1e-5)


@pytest.mark.parametrize(("of_model", "of_guide"), [((1, 1), ()), ((), (1,)), ((1,), (1, 1))])
def test_dims_of_a_step_may_differ_where_draws_are_credited(of_model, of_guide):
    found = Reinforce_ELBO(2, closed_form_entropy=False).loss(
        KEY, {}, *programs(of_model, of_guide, False)
    )
    means = -(terms(False)[:, None] + terms(False)) / 2
    assert np.abs(means - found).min() < 1e-4


def test_a_dream_of_steps_from_the_last_to_the_first():
    """The sleep update alone: the score of the guide at draws of the model."""

    def slope(key):
        def value(logits):
            guide = lambda: steps_under((), is_model=False, turned=True, logits=logits)  # noqa: E731
            options = {"sleep": 1.0, "replace_data": lambda made, args, kwargs: (args, kwargs)}
            return WakeSleep_ELBO(2, **options).loss(key, {}, programs((), (), True)[0], guide)

        return jax.grad(value)(jnp.asarray(LOGITS))

    expected = 0.0
    for states, log_p in zip(STATES, of_prior(True), strict=True):
        before = np.append(states[1:], 0)  # the last step is the first that is taken
        expected += np.exp(log_p) * (1 / (1 + np.exp(-LOGITS - before)) - states)
    assert_mean(draws_of("dreams of steps", slope, 2000), expected)


@pytest.mark.parametrize(
    "wrap", [lambda fn: fn, lambda fn: fn.mask(True), lambda fn: fn.expand(())]
)
def test_data_of_more_dims_than_their_distribution(wrap):
    """Three steps of three numbers under no plate, whose mean is one number a step."""
    x = np.arange(9.0).reshape(3, 3) / 4

    def model():
        z = numpyro.sample("z", dist.Bernoulli(0.3))

        def step(mean, x):
            numpyro.sample("x", wrap(dist.Normal(mean + z, 1.0)), obs=x)
            return mean + 1.0, None

        scan(step, 0.0, x)

    means = np.arange(3.0)[:, None]
    expected = -sum(p * normal(x, means + z).sum() for z, p in ((0, 0.7), (1, 0.3)))
    found = Exact_ELBO().loss(KEY, {}, model, lambda: numpyro.sample("z", dist.Bernoulli(0.3)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# ------------------------------------------------------------------ draws without a gradient


class WithoutPath(dist.Normal):
    """A normal whose draws have a slope that is wrong, and said to be none."""

    reparametrized_params = []  # noqa: RUF012

    def sample(self, key, sample_shape=()):
        value = super().sample(key, sample_shape)
        return value + 2 * (value - jax.lax.stop_gradient(value))


def normals(mean, family=dist.Normal, *, is_model=False):
    """Three of them, each about half of the one before, but for a model of none."""

    def step(before, _):
        fn = dist.Normal(0.0, 1.0) if is_model else family(mean + 0.5 * before, 1.0)
        return numpyro.sample("z", fn), None

    scan(step, jnp.array(0.0), None, length=3)


def slope_of_normals(mean):
    """Of half of the sum of the squared means and of what the steps before add in variance."""
    means = np.array([1.0, 1.5, 1.75])  # of what is drawn, each times `mean`
    return (means**2).sum() * mean


def test_a_draw_of_a_step_whose_family_has_no_path_has_none():
    def slope(key):
        def value(mean):
            pair = (lambda: normals(0.0, is_model=True)), (lambda: normals(mean, WithoutPath))
            return Reinforce_ELBO(4).loss(key, {}, *pair)

        return jax.grad(value)(0.7)

    assert_mean(draws_of("no path", slope, 4000), slope_of_normals(0.7))


def test_wake_sleep_keeps_the_draws_of_steps_where_they_are():
    """All weights are alike where the guide is the posterior; the wake phase then moves nothing."""

    def value(mean):
        return WakeSleep_ELBO(3).loss(KEY, {}, lambda: normals(0.7), lambda: normals(mean))

    assert abs(jax.grad(value)(0.7)) < 1e-5


# --------------------------------------------------------------------------- weights of a step


WEIGHTS = np.array([[1.0, 2.0], [3.0, 0.5], [2.0, 1.0]])


def weighed(way):
    z = numpyro.sample("z", dist.Bernoulli(0.3))

    def step(_, now):
        x, weight = now
        fn = dist.Normal(1.0 * z, 1.0)
        with numpyro.plate("data", 2):
            if way == "factor":
                numpyro.factor("x", weight * fn.log_prob(x))
            else:
                with handlers.scale(scale=weight if way == "inside" else 1.0):
                    numpyro.sample("x", fn, obs=x)
        return _, None

    with handlers.scale(scale=jnp.asarray(WEIGHTS) if way == "around" else 1.0):
        scan(step, 0.0, (jnp.asarray(X), jnp.asarray(WEIGHTS)))


def loss_of_weighed(loss, way):
    return jax.jit(
        lambda: loss.loss(
            KEY, {}, lambda: weighed(way), lambda: numpyro.sample("z", dist.Bernoulli(0.3))
        )
    )()


@pytest.mark.parametrize("loss", [Exact_ELBO(), DAPS_ELBO(2)])
def test_weights_of_a_step_are_refused_and_the_advice_works(loss):
    with pytest.raises(
        ValueError, match=r"'x' is weighed in a step of a `scan`.*around the `scan`"
    ):
        loss_of_weighed(loss, "inside")
    seen = [(WEIGHTS * normal(X, z)).sum() for z in (0, 1)]
    for way in ("around", "factor"):
        found = loss_of_weighed(loss, way)
        if isinstance(loss, Exact_ELBO):
            np.testing.assert_allclose(found, -0.7 * seen[0] - 0.3 * seen[1], rtol=1e-5)
        else:
            shares = -np.array([0.0, 0.5, 1.0]) * (seen[1] - seen[0]) - seen[0]
            assert np.abs(shares - found).min() < 1e-4


# ------------------------------------------------------------------------- rows of a minibatch


ALIKE = np.array([[3.0, -3.0, 3.0, -3.0], [-3.0, 3.0, 3.0, -3.0]])  # steps, data


def of_rows(where, slope, *, is_model=False):
    """Codes of a datum that say its sign, one a step, of one row of four that a plate draws."""
    before = numpyro.plate("data", 4, 1) if where == "before" else None

    def step(carry, x):
        with before or numpyro.plate("data", 4, 1) as rows:
            z = numpyro.sample("z", dist.Bernoulli(logits=slope * x[rows]))
            if is_model:
                numpyro.sample("x", dist.Normal(6.0 * z - 3.0, 1.0), obs=x[rows])
        return carry, None

    scan(step, 0.0, jnp.asarray(ALIKE))


def minus_log_joint(apart):
    """Of a code and its number, `apart` from where the code says that it is; eight of them."""
    return -8 * (np.log(0.5) + normal(apart, 0.0))


@pytest.mark.parametrize("where", ["before", "inside"])
@pytest.mark.parametrize("loss", [Exact_ELBO(), DAPS_ELBO(2)])
def test_rows_that_a_step_draws_are_those_of_both_programs(where, loss):
    """NumPyro draws others in each step of each program, so that codes were those of other data."""
    programs = (lambda: of_rows(where, 0.0, is_model=True)), (lambda: of_rows(where, 3.0))
    found = jax.jit(lambda keys: jax.lax.map(lambda key: loss.loss(key, {}, *programs), keys))(
        jax.random.split(KEY, 8)
    )
    np.testing.assert_allclose(found, minus_log_joint(0.0), rtol=0.01)  # a wrong one adds 18


def test_rows_of_dreams_are_those_of_both_programs():
    def slope(key):
        def value(slope):
            programs = (
                (lambda: of_rows("inside", 1.0, is_model=True)),
                (lambda: of_rows("inside", slope)),
            )
            options = {"sleep": 1.0, "replace_data": lambda made, args, kwargs: (args, kwargs)}
            return WakeSleep_ELBO(2, **options).loss(key, {}, *programs)

        return jax.grad(value)(0.1)

    q, p = (1 / (1 + np.exp(-slope * ALIKE)) for slope in (0.1, 1.0))
    assert_mean(draws_of("dreams of rows", slope, 2000), (ALIKE * (q - p)).sum())


def loss_of_sets(where):
    model = lambda: of_rows(where, 0.0, is_model=True)  # noqa: E731
    svi = SVI(model, TruncatedGuide(model, 4), optax.sgd(0.0), Truncated_ELBO())
    return jax.jit(lambda key: svi.evaluate(svi.init(key)))(KEY)


def test_sets_of_rows_want_their_plate_before_the_steps():
    with pytest.raises(ValueError, match=r"'data' is opened in a `scan`.*Make it before"):
        loss_of_sets("inside")
    both = np.logaddexp(-minus_log_joint(0.0) / 8, -minus_log_joint(6.0) / 8)
    np.testing.assert_allclose(loss_of_sets("before"), -8 * both, rtol=1e-5)


@pytest.mark.parametrize("under", ["data", None])
def test_a_mask_that_is_one_word_in_all_steps(under):
    """What it silences is silenced in each step, as by a mask that has the steps as a dim."""
    x = jnp.asarray([0.4, -0.9, 1.2])

    def program(masks, is_model):
        def step(carry, now):
            mask, x = now
            one = numpyro.plate("data", 1) if under else contextlib.nullcontext()
            mask = handlers.mask(mask=False if mask is None else mask)
            with one, contextlib.nullcontext() if is_model else mask:
                z = numpyro.sample("z", dist.Bernoulli(0.3 if is_model else 0.6))
                if is_model:
                    z = numpyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=x)
            return carry, z

        scan(step, 0, (masks, x), length=3)

    def elbo(masks):
        pair = tuple(lambda is_model=is_model: program(masks, is_model) for is_model in (1, 0))
        report = importance_diagnostics(KEY, pair, num_particles=400)
        return float(report.whole.elbo if not under else report.elbo.sum())

    found = elbo(None)
    np.testing.assert_allclose(found, elbo(jnp.zeros(3, bool)), rtol=1e-12)
    each = [np.log([0.7, 0.3]) + [normal(y, mean) for mean in (0.0, 1.0)] for y in np.asarray(x)]
    exact = sum(scores @ [0.4, 0.6] for scores in each)
    spread = np.sqrt(sum(0.24 * (scores[1] - scores[0]) ** 2 for scores in each) / 400)
    assert abs(found - exact) < 5 * spread
