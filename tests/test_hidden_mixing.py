"""Data that mix by a way without effect at the values that are tried: operations tell.

The right values are sums over all states by NumPy. An error of the package itself in such a trial
is raised, and not taken for the program's.
"""

import functools
import importlib
import itertools
import warnings

import numpy as np
import pytest
from test_mixing import OTHERS, _NumPyro, _Pyro

CELLS = 10
DATA = np.linspace(-1.0, 1.5, CELLS)
LOGITS = np.linspace(-0.5, 0.7, CELLS)
SUM = 2  # of no trial by numbers
WAYS = {
    "alone": lambda z, w: z + w,
    "a mean times 0": lambda z, w: z + w * z.mean(-1)[..., None],
    "a neighbour times 0": lambda z, w: z + w * z[..., np.roll(np.arange(CELLS), 1)],
    "one sum": lambda z, w: z + (z.sum(-1)[..., None] == SUM),
}


@pytest.fixture(params=[_Pyro, _NumPyro], ids=["pyro", "numpyro"])
def lab(request):
    return request.param()


def programs(lab, way):
    parameter = (lab.pyro if lab.name == "pyro" else lab.numpyro).param

    def rows(x, logits, is_model):
        cells = lab.plate("cells", CELLS, -1)
        with cells:
            prior = lab.dist.Bernoulli(0.4) if is_model else lab.dist.Bernoulli(logits=logits)
            z = lab.sample("z", prior)
        if is_model:
            mean = WAYS[way](1.0 * z, parameter("w", lab.numpy.array(0.0)))
            with cells:
                lab.sample("x", lab.dist.Normal(mean, 1.0), obs=x)

    return rows


@pytest.mark.parametrize("way", [way for way in WAYS if way != "alone"])
def test_data_that_mix_without_effect_are_found(lab, way):
    with pytest.warns(UserWarning, match=OTHERS):
        assert lab.plates(programs(lab, way), LOGITS, DATA) == ()


def enumerated():
    """Minus the ELBO, each state's weight and errors at a coefficient of 0, and means of rows."""
    loss, slope = 0.0, 0.0
    for row in itertools.product((0.0, 1.0), repeat=CELLS):
        z, probs = np.array(row), 1 / (1 + np.exp(-LOGITS))
        q, p = (np.where(z == 1, each, 1 - each) for each in (probs, 0.4))
        error = DATA - (z + (z.sum() == SUM))
        log_x = -0.5 * error**2 - 0.5 * np.log(2 * np.pi)
        loss -= q.prod() * (log_x.sum() + np.log(p / q).sum())
        slope -= q.prod() * ((DATA - z) * z.mean()).sum()
    return loss, slope


@pytest.mark.thrifty
def test_exact_values_and_gradients_of_hidden_mixing(lab):
    loss = importlib.import_module(f"{lab.name}_dvae.infer").Exact_ELBO
    wanted, slope = enumerated()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        value, found = of_pyro(lab, loss) if lab.name == "pyro" else of_numpyro(lab, loss)
    assert sum(OTHERS in str(w.message) for w in told) == 2
    assert value == pytest.approx(wanted, rel=1e-6)
    assert found == pytest.approx(slope, rel=1e-5)


def of_pyro(lab, loss):
    x, logits = lab.array(DATA), lab.array(LOGITS)

    def pair(way):
        rows = programs(lab, way)
        return (lambda: rows(x, logits, True)), (lambda: rows(x, logits, False))

    value = float(loss().loss(*pair("one sum")))
    lab.pyro.clear_param_store()
    loss().loss_and_grads(*pair("a mean times 0"))
    return value, float(lab.pyro.param("w").grad)


def of_numpyro(lab, loss):
    x, logits = lab.jax.numpy.asarray(DATA), lab.jax.numpy.asarray(LOGITS)

    def of(w, way):
        rows = programs(lab, way)
        model, guide = (lambda: rows(x, logits, True)), (lambda: rows(x, logits, False))
        return loss().loss(lab.key, {"w": w}, model, guide)

    return float(of(0.0, "one sum")), float(lab.jax.grad(of)(0.0, "a mean times 0"))


ORDER = functools.cache(lambda torch: torch.arange(CELLS))  # as an argument, of one call


def _attention(torch, z):
    return torch.nn.functional.scaled_dot_product_attention(z, z, z)


APART = {
    "turned twice": lambda torch, z: z.roll(1, -1).roll(-1, -1),
    "by a table": lambda torch, z: torch.tensor([0.1, 0.7])[z.long()],
    "by a layer": lambda torch, z: torch.nn.functional.linear(z[:, None], torch.ones(3, 1))[:, 0],
    "padded": lambda torch, z: torch.nn.functional.pad(z[:, None], (1, 1)).sum(-1),
    "beside none": lambda torch, z: z + z[:, None][:, :0].sum(-1),
    "by a matrix of none": lambda torch, z: z + (z[:, None][:, :0] @ torch.zeros(0, 2))[:, 0],
    "filled in": lambda torch, z: torch.zeros_like(z).copy_(z),
    "of pairs": lambda torch, z: torch.stack([z, 1 - z], -1).flatten().reshape(-1, 2)[:, 0],
    "one-hot": lambda torch, z: torch.nn.functional.one_hot(z.long(), 4).sum(-1),
    "convolved": lambda torch, z: torch.conv1d(z[:, None, None], torch.ones(1, 1, 1)).flatten(),
    "normalised": lambda torch, z: torch.layer_norm(torch.stack([z, -z], -1), (2,))[:, 0],
    "attended to": lambda torch, z: _attention(torch, z[:, None, None].expand(-1, 3, 2))[:, 0, 0],
    "rows of made": lambda torch, z: torch.stack([z, -z], -1)[torch.arange(CELLS), [1] * CELLS],
    "the largest of each": lambda torch, z: torch.stack([z, -z], -1).topk(1, -1).values[:, 0],
    "one-hot by hand": lambda torch, z: torch.zeros(CELLS, 4).index_put(
        (torch.arange(CELLS), z.long()), torch.ones(())
    )[:, SUM],
    "added in each": lambda torch, z: torch.stack([z, z], -1).index_add(
        1, torch.tensor([0]), z[:, None]
    )[:, 0],
    "counted in each": lambda torch, z: torch.stack([z, z], -1).count_nonzero(-1),
    "masked": lambda torch, z: torch.stack([z, z], -1)[:, torch.tensor([True, False])][:, 0],
    "contracted": lambda torch, z: torch.einsum("i,ij->i", z, torch.ones(CELLS, 4)),
    "on a diagonal": lambda torch, z: torch.diag_embed(z[:, None])[:, 0, 0],
    "far from points": lambda torch, z: torch.cdist(z[:, None], torch.ones(3, 1))[:, 1],
    "among some": lambda torch, z: z + torch.isin(z, torch.tensor([1.0, 3.0])),
    "transformed in each": lambda torch, z: torch.fft.fft(torch.stack([z, z], -1)).abs()[:, 0],
    "stretched in each": lambda torch, z: torch.nn.functional.interpolate(
        torch.stack([z, z], -1)[:, None], size=4, mode="linear"
    )[:, 0, 0],
}
MIXING = {
    "one sum": lambda torch, z: z + (z.sum() == SUM),
    "sorted": lambda torch, z: z.sort().values,
    "in place": lambda torch, z: z.clone().add_(0.0 * z.max()),
    "by a matrix": lambda torch, z: torch.zeros(CELLS, CELLS) @ z,
    "of a matrix": lambda torch, z: z + z @ torch.zeros(CELLS, CELLS),
    "one-hot, counted": lambda torch, z: (
        z + 0 * torch.nn.functional.one_hot(z.long(), 4)[:, 1].sum()
    ),
    "convolved along": lambda torch, z: torch.conv1d(z[None, None], torch.ones(1, 1, 3), padding=1)[
        0, 0
    ],
    "normalised along": lambda torch, z: torch.layer_norm(z, (CELLS,)),
    "attended to along": lambda torch, z: _attention(torch, z[None, :, None].expand(1, -1, 2))[
        0, :, 0
    ],
    "in an order": lambda torch, z: z[ORDER(torch)],
    "in orders of numbers": lambda torch, z: z[np.arange(CELLS)],  # of this call, or of all?
    "moved by padding": lambda torch, z: torch.nn.functional.pad(z, (1, 0))[:-1],
    "selected": lambda torch, z: z.index_select(0, ORDER(torch)),
    "gathered": lambda torch, z: z.gather(0, ORDER(torch)),
    "counted": lambda torch, z: z + (z == SUM).count_nonzero(),
    "summed where it is so": lambda torch, z: z + z[z == SUM].sum(),
    "at places": lambda torch, z: z + (z == SUM).nonzero().sum(),
    "counted by places": lambda torch, z: (
        z + torch.zeros(4).index_put((z.long(),), torch.ones(CELLS), True)[SUM]
    ),
    "added at places": lambda torch, z: (
        z + torch.zeros(4).index_add(0, z.long(), torch.ones(CELLS))[SUM]
    ),
    "in bins": lambda torch, z: z + 0 * z.long().bincount(minlength=CELLS),
    "the largest few": lambda torch, z: z + 0 * z.topk(2, -1).values.sum(),
    "the least and the most": lambda torch, z: z + 0 * torch.stack(z.aminmax())[0],
    "by a loss of all": lambda torch, z: z + 0 * torch.nn.functional.mse_loss(z, z + 1),
    "all are among": lambda torch, z: z + torch.isin(torch.tensor([9.0]), z),
    "far from each other": lambda torch, z: z + 0 * torch.cdist(z[:, None], z[:, None])[:, 1],
    "far from all others": lambda torch, z: z + 0 * torch.pdist(z[:, None])[0],
    "transformed": lambda torch, z: z + 0 * torch.fft.fft(z).abs(),
    "stretched": lambda torch, z: torch.nn.functional.interpolate(
        z[None, None], size=CELLS, mode="linear"
    )[0, 0],
    "through an index": lambda torch, z: torch.tensor([0.0, 0.0])[z.long().flip(0)],
}


@pytest.mark.parametrize("way", [*APART, *MIXING])
def test_operations_tell_whose_draws_a_number_is_of(way):
    torch = pytest.importorskip("torch")
    from pyro_dvae.programs.structure.owners import Owners

    z, _ = torch.zeros(CELLS), ORDER(torch)
    with torch.no_grad(), Owners(CELLS) as owners:
        owners.give(z, -1)
        found = (MIXING | APART)[way](torch, z)
        assert owners.has_others(found, -1) == (way in MIXING)


@pytest.mark.parametrize(
    "name", ["broadcasting._with_one_moved", "broadcasting._agree", "mixing._are_kept"]
)
@pytest.mark.parametrize("error", [TypeError, RuntimeError, IndexError])
def test_a_fault_of_the_package_is_no_word_of_a_program(name, error, monkeypatch):
    lab = _Pyro()
    module, _, function = name.partition(".")
    module = importlib.import_module(f"pyro_dvae.programs.structure.{module}")
    source = f"def {function}(*args, **kwargs):\n    raise failure('our own')\n"
    exec(source, vars(module) | {"failure": error}, found := {})  # raised in the module's name
    monkeypatch.setattr(module, function, found[function])
    rows = programs(lab, "alone")
    x, logits = lab.array(DATA), lab.array(LOGITS)
    loss = importlib.import_module("pyro_dvae.infer").Reinforce_ELBO(2)
    with pytest.raises(error, match="our own"):
        loss.loss(lambda: rows(x, logits, True), lambda: rows(x, logits, False))


@pytest.mark.parametrize("code", range(4))
def test_a_count_of_any_code_over_particles_is_found(code):
    """Those that were tried had the first codes and the last ones."""
    lab = _Pyro()
    torch, logits = lab.torch, lab.array(np.linspace(0.0, 0.9, 4))

    def model():
        z = lab.sample("z", lab.dist.Categorical(torch.ones(2, 4)).to_event(1))
        lab.sample("x", lab.dist.Normal(1.0 * (z == code).sum(), 0.5), obs=lab.array(1.5))

    def guide():
        lab.sample("z", lab.dist.Categorical(logits=logits.expand(2, 4)).to_event(1))

    q, wanted = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(), 0.0
    for row in itertools.product(range(4), repeat=2):
        weight = q[list(row)].prod()
        log_x = -2 * (1.5 - row.count(code)) ** 2 - 0.5 * np.log(2 * np.pi * 0.25)
        wanted -= weight * (log_x - 2 * np.log(4) - np.log(weight))
    loss = importlib.import_module("pyro_dvae.infer").Exact_ELBO()
    with pytest.warns(UserWarning, match="does not broadcast"):
        assert float(loss.loss(model, guide)) == pytest.approx(wanted, rel=1e-6)


def test_what_leads_to_others_by_a_code_in_the_middle_is_found(lab):
    """A share of those infected, say, of whom none was among the codes that were tried."""

    def rows(x, logits, is_model):
        cells = lab.plate("cells", 3, -1)
        with cells:
            z = lab.sample("z", lab.dist.Categorical(logits=logits))
        if is_model:
            mean = 0.3 * z + (1.0 * (z == 2)).mean(-1)[..., None]
            with cells:
                lab.sample("x", lab.dist.Normal(mean, 1.0), obs=x)

    with pytest.warns(UserWarning, match=OTHERS):
        assert lab.plates(rows, np.zeros((3, 5)), DATA[:3]) == ()


COUNTS = {  # by what `c` is in the guide: none that any particle is likely to draw is 0
    "Binomial": lambda dist, c: dist.Binomial(2, probs=0.9 + 0.05 * c),
    "of other trials": lambda dist, c: dist.Binomial(3 + c, probs=0.9 + 0.0 * c),
    "Poisson": lambda dist, c: dist.Poisson(8.0 + c),
}


@pytest.mark.parametrize("family", COUNTS)
def test_counts_that_depend_on_others_are_tried_low_and_high(family):
    """Their largest number, which other draws may say, has the particles' axis in Pyro."""
    lab = _Pyro()
    torch, dist = lab.torch, lab.dist

    def programs(is_model):
        c = lab.sample("c", dist.Bernoulli(torch.tensor(0.5 if is_model else 0.4)))
        n = lab.sample(
            "n", COUNTS[family](dist, 0.5 if is_model and family != "of other trials" else c)
        )
        if is_model:
            mean = 1.0 if n.sum() > 0 else -3.0
            lab.sample("x", dist.Normal(mean, 1.0), obs=torch.tensor(0.5))

    infer = importlib.import_module("pyro_dvae.infer")
    loss = infer.Exact_ELBO() if family == "Binomial" else infer.Reinforce_ELBO(2)
    with pytest.warns(UserWarning, match="does not broadcast"):
        found = loss.loss(lambda: programs(True), lambda: programs(False))
    if family == "Binomial":
        assert float(found) == pytest.approx(two_counts(), rel=1e-6)


def two_counts():
    """Minus the ELBO of the first of `COUNTS`, by hand."""
    loss = 0.0
    for c, n in itertools.product((0, 1), (0, 1, 2)):
        ways, q, p = (1, 2, 1)[n], 0.9 + 0.05 * c, 0.925
        q = (0.4 if c else 0.6) * ways * q**n * (1 - q) ** (2 - n)
        p = 0.5 * ways * p**n * (1 - p) ** (2 - n)
        log_x = -0.5 * (0.5 - (1.0 if n else -3.0)) ** 2 - 0.5 * np.log(2 * np.pi)
        loss -= q * (log_x + np.log(p / q))
    return loss


ASKS = {  # of two latents of three codes, of which no particle that is tried has the middle one
    "if": lambda z: 2.0 if (z == 1).sum() >= 1 else 0.0,
    "in a list": lambda z: 2.0 * (1 in z.flatten().tolist()),
    "in its data": lambda z: 2.0 if 1 in z.data.numpy() else 0.0,
    "a count of what is not zero": lambda z: 2.0 * ((z == 1).count_nonzero() >= 1),
    "a sum where it is so": lambda z: 2.0 * (z[z == 1].sum() >= 1),
}


@pytest.mark.parametrize("way", ASKS)
def test_a_code_in_the_middle_of_other_particles_is_found(way):
    """Python goes one way for all particles; an operation may count them all."""
    lab = _Pyro()
    torch, dist = lab.torch, lab.dist
    q = np.array([0.5, 0.1, 0.4])

    def programs(is_model):
        probs = torch.ones(3) / 3 if is_model else torch.tensor(q)
        z = lab.sample("z", dist.Categorical(probs.expand(2, 3)).to_event(1))
        if is_model:
            lab.sample("x", dist.Normal(ASKS[way](z) + z[..., 0], 1.0), obs=torch.tensor(0.5))

    wanted = 0.0
    for row in itertools.product(range(3), repeat=2):
        weight = q[list(row)].prod()
        log_x = -0.5 * (0.5 - 2.0 * (1 in row) - row[0]) ** 2 - 0.5 * np.log(2 * np.pi)
        wanted -= weight * (log_x - 2 * np.log(3) - np.log(weight))
    loss = importlib.import_module("pyro_dvae.infer").Exact_ELBO()
    with pytest.warns(UserWarning, match="does not broadcast"):
        found = loss.loss(lambda: programs(True), lambda: programs(False))
    assert float(found) == pytest.approx(wanted, rel=1e-6)


def test_python_asks_no_draw_of_all_particles():
    """Their sum is above 0 in all that the guide draws at first, and in half of them later."""
    lab = _Pyro()
    torch, dist = lab.torch, lab.dist
    loc = torch.tensor(9.0)

    def model():
        y = lab.sample("y", dist.Normal(0.0, 1.0))
        lab.sample("x", dist.Normal(3.0 if y.sum() > 0 else -3.0, 1.0), obs=torch.tensor(0.5))

    def guide():
        lab.sample("y", dist.Normal(loc, 1.0))

    loss = importlib.import_module("pyro_dvae.infer").Reinforce_ELBO(500)
    with pytest.warns(UserWarning, match="does not broadcast.*Python asks"):
        loss.loss(model, guide)
    loc.fill_(0.0)  # half of 2.5 and half of 3.5 away
    wanted = 0.25 * (2.5**2 + 3.5**2) + 0.5 * np.log(2 * np.pi)
    assert float(loss.loss(model, guide)) == pytest.approx(wanted, abs=5 * 1.5 / 500**0.5)


def test_python_may_ask_for_data_where_nothing_is_drawn():
    """No warning, which would be an error here."""
    lab = _Pyro()
    x = lab.torch.tensor([0.5, 1.0])

    def model():
        mean = lab.torch.ones(2) if x.sum() > 0 else lab.torch.zeros(2)
        lab.sample("x", lab.dist.Normal(mean, 1.0).to_event(1), obs=x)

    loss = importlib.import_module("pyro_dvae.infer").Reinforce_ELBO(2)
    wanted = 0.125 + np.log(2 * np.pi)
    assert float(loss.loss(model, lambda: None)) == pytest.approx(wanted, rel=1e-6)
