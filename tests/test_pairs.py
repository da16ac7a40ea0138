"""Every method with every part: the pair trains, or says what to do instead.

To train is that each part moves and the ELBO rises. There are as many codes as dimensions, so that
codes, relaxed codes and vectors could be taken for one another by their sizes.
"""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

B, L, V, D, EVENT = 16, 2, 4, 4, (3,)
RNG = np.random.default_rng(0)
X = (RNG.integers(0, 2, size=(B, 1)) * 2.0 - 1 + 0.1 * RNG.normal(size=(B, *EVENT))).astype("f")
# Close together, so that the first inputs choose several: from one code of all no table learns.
TABLE = 0.3 * RNG.normal(size=(V, D)).astype("f")

GUIDES = ("independent", "quantised", "truncated")
DECODERS = ("table", "averages", "scalars", "mlp")
SAMPLED = ("daps", "reinforce", "vimco", "wake_sleep", "exact", "trace")
RELAXED = ("gumbel", "straight_through", "straight_through_gumbel", "reinmax", "gr_mck")
METHODS = ("vq", *SAMPLED, *RELAXED, "relaxed_daps", "truncated")


def refusal(method, guide, decoder):
    """What the error says, or None where the pair trains."""
    if (method == "truncated") != (guide == "truncated"):
        return "not a pair"
    if method == "vq" and guide == "independent":
        return "needs a guide that quantises vectors"
    if method == "vq":
        return "has a table of its own" if decoder == "mlp" else None
    if guide == "quantised":
        relaxed = method in (*RELAXED, "relaxed_daps")
        return "is quantised" if relaxed else "Train it with VQ_ELBO"
    return "Use decay=None" if decoder == "averages" else None


# NumPyro's own losses take no discrete latents, and say so.
PAIRS = [p for p in itertools.product(METHODS, GUIDES, DECODERS) if refusal(*p) != "not a pair"]


def parts(package, asarray, guide, decoder):
    nets, models, guides = package("nets"), package("models"), package("guides")
    codebook = {
        "table": lambda: nets.Codebook(V, D, table=asarray(TABLE)),
        "averages": lambda: nets.Codebook(V, D, table=asarray(TABLE), decay=0.9),
        "scalars": lambda: nets.FiniteScalars((2, 2)),
        "mlp": lambda: nets.Codebook(V, D, table=asarray(TABLE)),  # of the guide alone
    }[decoder]()
    width = codebook.embed_dim
    if decoder == "mlp":
        network = nets.MLPDecoder(L, V, EVENT, embed_dim=D, hidden=(8,))
    else:
        network = nets.MLPDecoder(L * width, None, EVENT, hidden=(8,))
        network = nets.CodebookDecoder(codebook, network)
    likelihood = models.GaussianLikelihood(variance=0.5, learn=False)
    model = models.DiscreteVAE(network, models.UniformPrior(L, V), likelihood)
    if guide == "quantised":
        encoder = nets.MLPEncoder(EVENT, L, width, hidden=(8,))
        return model, guides.VectorQuantizedGuide(encoder, codebook)
    if guide == "truncated":
        return model, package("infer").TruncatedGuide(model, 4)
    return model, guides.IndependentGuide(nets.MLPEncoder(EVENT, L, V, hidden=(8,)))


def loss_of(package, stock, method):
    infer = package("infer")
    if method in RELAXED:
        return stock()
    return {
        "vq": lambda: infer.VQ_ELBO(),
        "daps": lambda: infer.DAPS_ELBO(4),
        "reinforce": lambda: infer.Reinforce_ELBO(4),
        "vimco": lambda: infer.VIMCO_ELBO(4),
        "wake_sleep": lambda: infer.WakeSleep_ELBO(4),
        "exact": lambda: infer.Exact_ELBO(),
        "trace": stock,
        "relaxed_daps": lambda: infer.DAPS_ELBO(4),
        "truncated": lambda: infer.Truncated_ELBO(),
    }[method]()


def relaxed(package, method, *programs):
    if method not in (*RELAXED, "relaxed_daps"):
        return programs
    how = "gumbel" if method == "relaxed_daps" else method
    return tuple(package("infer").relax(program, how) for program in programs)


def run_pyro(method, guide, decoder, num_steps=40):
    import pyro
    import torch

    def package(path):
        import importlib

        return importlib.import_module(f"pyro_dvae.{path}")

    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    model, guide = parts(package, torch.asarray, guide, decoder)
    programs = relaxed(package, method, model, guide)
    elbo = loss_of(package, lambda: pyro.infer.Trace_ELBO(4, vectorize_particles=False), method)
    svi = pyro.infer.SVI(*programs, pyro.optim.Adam({"lr": 0.02}), elbo)
    before = state_of(model, guide)
    losses = [float(svi.step(torch.asarray(X))) for _ in range(num_steps)]
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

    def package(path):
        import importlib

        return importlib.import_module(f"numpyro_dvae.{path}")

    model, guide = parts(package, jnp.asarray, guide, decoder)
    programs = relaxed(package, method, model, guide)
    stock = numpyro.infer.Trace_ELBO
    svi = package("infer").SVI(*programs, numpyro.optim.Adam(0.02), loss_of(package, stock, method))
    state = svi.init(jax.random.key(0), jnp.asarray(X))
    before = leaves_of(svi.get_params(state), state.mutable_state)
    update, losses = jax.jit(lambda state: svi.update(state, jnp.asarray(X))), []
    for _ in range(num_steps):
        state, loss = update(state)
        losses.append(float(loss))
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
    found = run(*pair)
    assert np.isfinite(found.losses).all()
    assert np.mean(found.losses[-10:]) < np.mean(found.losses[:5]) - 1.0
    still = [name for name, value in found.before.items() if (value == found.after[name]).all()]
    counts = [name for name in found.before if "counts" in name]
    assert still == (counts if pair[1] != "quantised" else [])  # who quantises counts choices


# One of each kind; the others take a minute, and NumPyro compiles each for seconds.
QUICK = [
    ("vq", "quantised", "mlp"),
    ("vq", "independent", "table"),
    ("daps", "quantised", "table"),
    ("daps", "independent", "averages"),
    ("reinmax", "quantised", "scalars"),
    ("reinmax", "independent", "table"),
]
MARKED = [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in PAIRS]


@pytest.mark.filterwarnings("ignore:Found non-auxiliary vars in guide")  # z.inputs, in stock losses
@pytest.mark.parametrize("pair", MARKED, ids="-".join)
def test_pyro(pair):
    pytest.importorskip("torch")
    check(run_pyro, pair)


@pytest.mark.parametrize("pair", [p for p in MARKED if "trace" not in str(p)], ids="-".join)
def test_numpyro(pair):
    pytest.importorskip("jax")
    check(run_numpyro, pair)
