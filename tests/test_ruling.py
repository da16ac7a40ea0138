"""An automatic guide starts without what the data rule out, as an enumeration says, and no more."""

import itertools

import numpy as np
import pytest
from automatic_lab import lab as make_lab

CAUGHT = np.array([[1.0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]])
HARD = np.array([[[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], [[0.0, 1.0, 0.0], [0.3, 0.3, 0.4]]])


@pytest.fixture(params=["pyro", "numpyro"])
def lab(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return make_lab(request.param)


def survival(ppl, caught, seen):
    """The dead stay dead, and are not caught; what is not `seen` counts nothing."""
    with ppl.plate("animals", len(caught), dim=-1):
        alive = 1.0
        for t in range(4):
            alive = ppl.sample(f"z{t}", ppl.dist.Bernoulli(0.7 * alive * ppl.array(1.0)))
            with ppl.mask(mask=seen[:, t]):
                ppl.sample(f"x{t}", ppl.dist.Bernoulli(0.4 * alive), obs=caught[:, t])


def starts(lab, model, guide, *args):
    """By site the probabilities of its values at the start, ``(*batch, rows..., V)``."""
    found = {}
    for name, logits in lab.start(guide, *args).items():
        both = np.concatenate([0 * logits, logits], -1) if logits.shape[-1] == 1 else logits
        weights = np.exp(both - both.max(-1, keepdims=True))
        found[name] = weights / weights.sum(-1, keepdims=True)
    return found


def lives(row, seen):
    """Which lives of an animal the data leave possible."""
    for life in itertools.product((0, 1), repeat=4):
        stays_dead = all(a >= b for a, b in itertools.pairwise(life))
        if stays_dead and all(z or not x or not s for z, x, s in zip(life, row, seen, strict=True)):
            yield life


SLOW = pytest.mark.slow


@pytest.mark.thrifty
@pytest.mark.parametrize(
    ("structure", "hidden"),
    [
        ("model", (0, 2)),
        pytest.param("mean_field", (0, 2), marks=SLOW),
        pytest.param("model", (), marks=SLOW),
        pytest.param("mean_field", (), marks=SLOW),
    ],
)
def test_a_chain_starts_with_the_lives_that_are_possible(lab, structure, hidden):
    """The prior of these, where nothing is masked; all that is silenced is possible."""
    seen = np.ones(CAUGHT.shape, bool)
    if hidden:
        seen[hidden] = False
    model = lab.bind(survival)
    args = lab.array(CAUGHT), lab.array(seen)
    found = starts(lab, model, lab.guide(model, structure=structure), *args)
    for n, (row, t) in enumerate(itertools.product(range(4), range(4))):
        possible = list(lives(CAUGHT[row], seen[row]))
        own = found[f"z{t}"][row]
        for value in (0, 1):
            if structure == "model" and t:
                can = any(z[t] == value and z[t - 1] for z in possible)
                assert (own[1, value] > 1e-12) == can, (n, value)
            else:
                assert (own[value] > 1e-12) == any(z[t] == value for z in possible), (n, value)
        if structure == "model" and t and CAUGHT[row, t:].sum() == 0:
            np.testing.assert_allclose(own[1], [0.3, 0.7], rtol=1e-5)


def shared(ppl, x):
    """A latent of all data, and one of each of two cells."""
    table = ppl.array(HARD)
    g = ppl.sample("g", ppl.dist.Categorical(ppl.array([0.5, 0.5])))
    with ppl.plate("data", len(x), dim=-1):
        b = ppl.sample("b", ppl.dist.Bernoulli(ppl.array([0.2, 0.6])).to_event(1))
        ppl.sample("x", ppl.dist.Categorical(table[g, ppl.integer(b[..., 0])]), obs=x)
        both = ppl.array(HARD[0])[ppl.integer(b[..., 0] * b[..., 1])]
        ppl.sample("y", ppl.dist.Categorical(both), obs=x)


@pytest.mark.thrifty
@pytest.mark.parametrize(
    "data", [(0, 1), *(pytest.param(x, marks=SLOW) for x in ((1, 0), (2, 2), (0, 2)))]
)
def test_cells_and_what_all_data_share(lab, data):
    """Of a latent that all data share, a value goes that is impossible for one of them."""
    model, x = lab.bind(shared), np.array(data)
    found = starts(lab, model, lab.guide(model), lab.array(x))
    joint = []
    for g, *b in itertools.product((0, 1), repeat=1 + 2 * len(data)):
        cells = np.array(b).reshape(-1, 2)
        each = HARD[g, cells[:, 0], x] * HARD[0, cells.prod(1), x]
        if each.all():
            joint.append((g, cells))
    for value in (0, 1):
        assert (found["g"][value] > 1e-12) == any(g == value for g, _ in joint)
        for n, cell in itertools.product(range(len(data)), (0, 1)):
            can = any(cells[n, cell] == value for _, cells in joint)
            assert (found["b"][n, cell, value] > 1e-12) == can, (value, n, cell)


def bounded(ppl, x, rows):
    """A scale that some data are beyond; the rows of a minibatch."""
    with ppl.plate("data", 4, dim=-1, subsample=rows):
        z = ppl.sample("z", ppl.one_hot(ppl.array([0.2, 0.3, 0.5])))
        u = ppl.sample("u", ppl.dist.Normal(ppl.array(0.0), 1.0))
        largest = z @ ppl.array([1.0, 2.0, 3.0])
        ppl.sample("x", ppl.dist.Uniform(0.0, largest), obs=x)
        ppl.sample("y", ppl.dist.Uniform(-1.0, 1.0 + u**2 + largest), obs=x)


@pytest.mark.thrifty
def test_rows_that_the_first_call_lacks_start_at_the_prior(lab):
    """What a continuous latent decides is not ruled out."""
    model, prior = lab.bind(bounded), np.array([0.2, 0.3, 0.5])
    x, rows = lab.array(np.array([1.5, 0.5])), lab.array(np.array([2, 0]))
    block = lab.primitives.block(model, hide=["u"]) if lab.name == "numpyro" else model
    found = starts(lab, block, lab.guide(model), x, rows)["z"]
    np.testing.assert_allclose(found[[0, 1, 3]], [prior] * 3, rtol=1e-5)
    np.testing.assert_allclose(found[2], [0.0, 0.375, 0.625], rtol=1e-5, atol=1e-12)


STEPS = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])  # each row rules out more


def step(ppl, x, rows):
    g = ppl.sample("g", ppl.dist.Categorical(ppl.array([0.4, 0.3, 0.3])))
    with ppl.plate("data", 4, dim=-1, subsample=rows):
        ppl.sample("x", ppl.dist.Categorical(ppl.array(STEPS)[g]), obs=x)


@pytest.mark.thrifty
def test_a_shared_latent_is_ruled_by_the_rows_of_the_first_call(lab):
    """What other rows rule out, beside, is not: it has its share of the prior.

    With all rows the loss is finite, though what is left out has a density of exactly 0.
    """
    model, x = lab.bind(step), np.array([0, 0, 1, 2])
    for rows in ([0, 2], [0, 1], [0, 1, 2, 3]):
        args = lab.array(x[rows]), lab.array(np.array(rows))
        found = starts(lab, model, lab.guide(model), *args)["g"]
        possible = STEPS[:, x[rows]].all(1) * np.array([0.4, 0.3, 0.3])
        np.testing.assert_allclose(found, possible / possible.sum(), rtol=1e-5, atol=1e-12)
        if lab.name == "pyro":
            lab.pyro.clear_param_store()
    guide = lab.guide(model)
    loss, _ = lab.loss(lab.exact(), model, guide, lab.start(guide, *args), *args)
    np.testing.assert_allclose(loss, -np.log(0.3 * STEPS[2, x].prod()), rtol=1e-6)


@pytest.mark.thrifty
def test_impossible_data_rule_nothing_out(lab):
    """They are told by the loss, with their rows; a start would only hide them."""
    model = lab.bind(survival)
    args = lab.array(np.full((1, 4), 2.0)), lab.array(np.ones((1, 4), bool))
    for probs in starts(lab, model, lab.guide(model), *args).values():
        assert (probs > 1e-3).all()


def learnt(ppl, x, *, is_learnt):
    """Scales and a table with zeros that are learnt, or known; what the dead do is never learnt."""

    def number(name, start, constraint):
        return ppl.param(name, start, constraint) if is_learnt else ppl.array(start)

    with ppl.plate("data", len(x), dim=-1):
        z = ppl.sample("z", ppl.dist.Bernoulli(ppl.array(0.4)))
        ppl.sample("x", ppl.dist.Uniform(0.0, number("scale", 1.0, "positive") + z), obs=x)
        g = ppl.sample("g", ppl.dist.Categorical(ppl.array([0.2, 0.3, 0.5])))
        table = number("table", STEPS, "simplex")
        ppl.sample("y", ppl.dist.Categorical(table[g]), obs=ppl.integer(x))
        alive = ppl.sample("alive", ppl.dist.Bernoulli(ppl.array(0.7)))
        caught = number("p", 0.8, "unit_interval") * alive
        ppl.sample("c", ppl.dist.Bernoulli(caught), obs=ppl.array(np.array([0.0, 1.0])))


@pytest.mark.thrifty
@pytest.mark.parametrize("is_learnt", [True, False])
def test_what_a_parameter_rules_out_may_become_possible(lab, is_learnt):
    """And what is impossible whatever it is, goes; the parameters are as they were."""
    model = lab.bind(lambda ppl, x: learnt(ppl, x, is_learnt=is_learnt))
    found = starts(lab, model, lab.guide(model), lab.array(np.array([0.5, 1.5])))
    zeros = {
        "z": [[1, 1], [is_learnt, 1]],
        "g": [[1, 1, 1], [is_learnt, 1, 1]],
        "alive": [[1, 1], [0, 1]],
    }
    for name, possible in zeros.items():
        np.testing.assert_array_equal(found[name] > 1e-12, np.array(possible, bool), name)
    if lab.name == "pyro" and is_learnt:
        held = {name: lab.pyro.param(name).detach().numpy() for name in ("scale", "table", "p")}
        for name, value in {"scale": 1.0, "table": STEPS, "p": 0.8}.items():
            np.testing.assert_allclose(held[name], value, atol=1e-6)


def inflated(ppl, y):
    """No rate, whatever the group's, has a count where there is none: these are of the others."""
    with ppl.plate("groups", 2, dim=-2):
        effect = ppl.sample("effect", ppl.dist.Normal(ppl.array(0.0), ppl.array(0.7)))
        with ppl.plate("data", 3, dim=-1):
            z = ppl.sample("z", ppl.dist.Bernoulli(ppl.array(0.3)))
            rate = ppl.where(z > 0, ppl.array(0.0), ppl.exp(effect))
            ppl.sample("y", ppl.dist.Poisson(rate), obs=y)


def within(ppl, y):
    """Bounds that are drawn rule nothing out: others may be drawn."""
    low = ppl.sample("low", ppl.dist.Normal(ppl.array(0.0), ppl.array(1.0)))
    width = ppl.sample("width", ppl.dist.LogNormal(ppl.array(0.0), ppl.array(1.0)))
    with ppl.plate("groups", 2, dim=-2), ppl.plate("data", 3, dim=-1):
        z = ppl.sample("z", ppl.dist.Bernoulli(ppl.array(0.3)))
        high = low + width
        ppl.sample("y", ppl.dist.Uniform(low - 100.0 * z, high + 100.0 * z), obs=y)


@pytest.mark.thrifty
@pytest.mark.parametrize(("model", "is_ruled"), [(inflated, True), (within, False)])
def test_what_is_impossible_whatever_a_continuous_latent_is_is_ruled_out(lab, model, is_ruled):
    y = np.array([[0.0, 3.0, 1.0], [0.0, 0.0, 5.0]])
    program = lab.bind(model)
    found = starts(lab, program, lab.guide(program), lab.array(y))["z"].reshape(2, 3, 2)
    prior = np.broadcast_to([0.7, 0.3], (2, 3, 2))
    exact = np.where(y[..., None] > 0, [1.0, 0.0], prior) if is_ruled else prior
    np.testing.assert_allclose(found, exact, atol=1e-6)


@pytest.mark.thrifty
@pytest.mark.parametrize("first", ["normal", "discrete"])
def test_beside_a_guide_of_continuous_latents_the_loss_is_finite(lab, first):
    ppl, model = lab.primitives, lab.bind(inflated)
    y = lab.array(np.array([[0.0, 3.0, 1.0], [0.0, 0.0, 5.0]]))
    guides = ppl.list(model, ["z", "y"])
    parts = [ppl.normal(ppl.block(model, hide=["z", "y"])), lab.guide(model)]
    for part in parts if first == "normal" else parts[::-1]:
        guides.append(part)
    elbo = lab.module("infer").Reinforce_ELBO(4)
    losses, _ = lab.train(elbo, model, guides, 3, y)
    assert np.isfinite(losses).all()
