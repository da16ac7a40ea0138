"""Every method with every part: the pair trains, or says what to do instead.

To train is that each part moves and the ELBO rises. There are as many codes as dimensions, so that
codes, relaxed codes and vectors could be taken for one another by their sizes.
"""

import importlib
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from parts_lab import EVENT, STACKS, parts

B = 16
RNG = np.random.default_rng(0)
X = (RNG.integers(0, 2, size=(B, 1)) * 2.0 - 1 + 0.1 * RNG.normal(size=(B, *EVENT))).astype("f")

GUIDES = ("independent", "head", "autoregressive", "quantised", "truncated")
TABLES = ("table", "other", "averages", "scalars", "bits", "residual", "grouped", "scales")
DECODERS = (*TABLES, "mlp", "binary")
SAMPLED = ("daps", "reinforce", "vimco", "disarm", "wake_sleep", "exact", "trace")
RELAXED = ("gumbel", "straight_through", "straight_through_gumbel", "reinmax", "gr_mck")
METHODS = ("vq", *SAMPLED, *RELAXED, "relaxed_daps", "truncated")


def refusal(method, guide, decoder):
    """What the error says, or None where the pair trains."""
    if (method == "truncated") != (guide == "truncated"):
        return "not a pair"
    if decoder == "binary" and guide not in ("independent", "truncated"):
        return "not a pair"  # other guides are of codes
    if guide == "head" and decoder in ("averages", *STACKS):
        return "learn by gradient" if decoder == "averages" else "must be a single one"
    if method == "vq" and guide != "quantised":
        return "needs a guide that quantises vectors"
    if method == "vq":
        return "has a table of its own" if decoder == "mlp" else None
    if method == "disarm":
        return None if decoder == "binary" else "antithetic pairs are of Bernoulli draws"
    is_relaxed = method in (*RELAXED, "relaxed_daps")
    if guide == "quantised":
        return "is quantised" if is_relaxed else "Train it with VQ_ELBO"
    if is_relaxed and guide == "autoregressive":
        return "cannot be relaxed: use a loss for discrete latents"
    return "Use decay=None" if decoder == "averages" else None


# NumPyro's own losses take no discrete latents, and say so.
PAIRS = [p for p in itertools.product(METHODS, GUIDES, DECODERS) if refusal(*p) != "not a pair"]


class Package:
    """Rooms of a package."""

    def __init__(self, name):
        self.name = name

    def __call__(self, path):
        return importlib.import_module(f"{self.name}_dvae.{path}")


def loss_of(package, stock, method):
    infer = package("infer")
    if method in RELAXED:
        return stock()
    return {
        "vq": lambda: infer.VQ_ELBO(),
        "daps": lambda: infer.DAPS_ELBO(4),
        "reinforce": lambda: infer.Reinforce_ELBO(4),
        "vimco": lambda: infer.VIMCO_ELBO(4),
        "disarm": lambda: infer.DisARM_ELBO(4),
        "wake_sleep": lambda: infer.WakeSleep_ELBO(4),
        "exact": lambda: infer.Exact_ELBO(),
        "trace": stock,
        "relaxed_daps": lambda: infer.DAPS_ELBO(4),
        "truncated": lambda: infer.Truncated_ELBO(),
    }[method]()


def rate_of(guide):
    """Of Adam: at 0.02 quantised codes outrun a decoder that learns as fast, and losses jump."""
    return 0.01 if guide == "quantised" else 0.02


def relaxed(package, method, *programs):
    if method not in (*RELAXED, "relaxed_daps"):
        return programs
    how = "gumbel" if method == "relaxed_daps" else method
    return tuple(package("infer").relax(program, how) for program in programs)


def run_pyro(method, guide, decoder, num_steps=40):
    import pyro
    import torch

    package = Package("pyro")
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    rate = rate_of(guide)
    model, guide = parts(package, torch.asarray, guide, decoder)
    programs = relaxed(package, method, model, guide)
    elbo = loss_of(package, lambda: pyro.infer.Trace_ELBO(4, vectorize_particles=False), method)
    svi = pyro.infer.SVI(*programs, pyro.optim.Adam({"lr": rate}), elbo)
    before = state_of(model, guide)
    losses = []
    for _ in range(num_steps):
        losses.append(float(svi.step(torch.asarray(X))))
        if method == "vimco":
            losses[-1] = -B * float(elbo.info.iwae)
    return SimpleNamespace(losses=losses, before=before, after=state_of(model, guide))


def state_of(*modules):
    return {
        f"{number}.{name}": value.detach().numpy().copy()
        for number, module in enumerate(modules)
        if hasattr(module, "state_dict")
        for name, value in module.state_dict().items()
        if value.is_floating_point() and value.numel() > 1
    }


def run_numpyro(method, guide, decoder, num_steps=40):
    import jax
    import jax.numpy as jnp
    import numpyro

    package, rate = Package("numpyro"), rate_of(guide)
    model, guide = parts(package, jnp.asarray, guide, decoder)
    programs = relaxed(package, method, model, guide)
    stock = numpyro.infer.Trace_ELBO
    svi = package("infer").SVI(*programs, numpyro.optim.Adam(rate), loss_of(package, stock, method))
    state = svi.init(jax.random.key(0), jnp.asarray(X))
    before = leaves_of(svi.get_params(state), state.mutable_state)
    update, losses = jax.jit(lambda state: svi.update(state, jnp.asarray(X))), []
    for _ in range(num_steps):
        state, loss = update(state)
        losses.append(float(loss))
        if method == "vimco":
            losses[-1] = -B * float(package("infer.svi").loss_info(state).iwae)
    after = leaves_of(svi.get_params(state), state.mutable_state)
    return SimpleNamespace(losses=losses, before=before, after=after)


def leaves_of(params, mutable):
    import jax

    held = {k: v for k, v in (mutable or {}).items() if k.startswith("codebook")}
    for name, state in held.items():  # a table that restarts none of its codes is not moved
        held[name] = {k: v for k, v in state.items() if k != "moved"}
    found = jax.tree_util.tree_leaves_with_path({**params, **held})
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in found if leaf.size > 1}


def check(run, pair):
    message = refusal(*pair)
    if message is not None:
        with pytest.raises(ValueError, match=message):
            run(*pair, num_steps=2)
        return
    found = run(*pair, num_steps=120 if pair[1] == "autoregressive" else 40)
    assert np.isfinite(found.losses).all()
    assert np.mean(found.losses[-10:]) < np.mean(found.losses[:5]) - 1.0
    still = {name for name, value in found.before.items() if (value == found.after[name]).all()}
    fixed = {name for name in found.before if "prior" in name}
    if pair[1] != "quantised":  # who quantises counts choices
        fixed |= {name for name in found.before if "counts" in name}
    assert still == fixed


# One of each kind; the others take minutes, and NumPyro compiles each for seconds.
QUICK = [
    ("vq", "quantised", "mlp"),
    ("vq", "independent", "table"),
    ("daps", "quantised", "table"),
    ("daps", "independent", "averages"),
    ("daps", "head", "grouped"),
    ("disarm", "independent", "table"),
    ("reinmax", "quantised", "scalars"),
    ("reinmax", "independent", "table"),
    ("gumbel", "autoregressive", "table"),
]
QUICK_IN_PYRO = [
    *QUICK,
    ("vq", "quantised", "scales"),
    ("daps", "autoregressive", "grouped"),
    ("disarm", "independent", "binary"),
    ("reinforce", "head", "other"),
    ("gumbel", "independent", "residual"),
    ("truncated", "truncated", "bits"),
]
# All kinds of relaxations meet a decoder in the same way: of NumPyro two are asked for all.
FEW = ("straight_through", "straight_through_gumbel", "gr_mck", "relaxed_daps")
IN_NUMPYRO = [
    pair
    for pair in PAIRS
    if pair[0] != "trace" and (pair[0] not in FEW or pair[2] in ("table", "averages"))
]


def marked(pairs, quick):
    return [p if p in quick else pytest.param(p, marks=pytest.mark.slow) for p in pairs]


@pytest.mark.filterwarnings("ignore:Found non-auxiliary vars in guide")  # z.inputs, in stock losses
@pytest.mark.parametrize("pair", marked(PAIRS, QUICK_IN_PYRO), ids="-".join)
def test_pyro(pair):
    pytest.importorskip("torch")
    check(run_pyro, pair)


@pytest.mark.parametrize("pair", marked(IN_NUMPYRO, QUICK), ids="-".join)
def test_numpyro(pair):
    pytest.importorskip("jax")
    check(run_numpyro, pair)
