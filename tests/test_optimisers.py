"""AdamW with clipping, sums of gradients and averages of weights: against NumPy, and resumed."""

import dataclasses
import importlib

import numpy as np
import pytest
from test_fit import run

RNG = np.random.default_rng(0)
START = {"a": RNG.normal(size=(3, 4)), "b": RNG.normal(size=4)}
GRADS = [{k: 3.0 * RNG.normal(size=v.shape) for k, v in START.items()} for _ in range(6)]


@pytest.fixture(scope="module", params=["pyro", "numpyro"])
def kit(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return importlib.import_module(f"fit_{request.param}")


def pyro_steps(optim):
    """Parameters after each of the gradients, and the averages at the end."""
    import pyro
    import torch

    pyro.clear_param_store()
    for name, value in START.items():
        pyro.param(name, torch.as_tensor(value.copy()))
    params, found = dict(pyro.get_param_store().named_parameters()), []
    for grads in GRADS:
        for name, param in params.items():
            param.grad = torch.as_tensor(grads[name].copy())
        optim(set(params.values()))
        found.append({name: param.detach().numpy().copy() for name, param in params.items()})
    return found, {name: state["average"].numpy() for name, state in optim.get_state().items()}


def numpyro_steps(optim):
    import jax

    state, found = optim.init(jax.tree.map(jax.numpy.asarray, START)), []
    for grads in GRADS:
        state = optim.update(jax.tree.map(jax.numpy.asarray, grads), state, value=0.0)
        found.append(jax.tree.map(np.asarray, optim.get_params(state)))
    kind = importlib.import_module("numpyro_dvae.fit.optimisers")._Averages
    leaves = jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, kind))
    return found, next((leaf.values for leaf in leaves if isinstance(leaf, kind)), None)


def clipped(grad, weights, ratio, unit_axis):
    """One unit after the other."""
    grad = grad.copy()
    units = [np.s_[:]] if grad.ndim == 1 else [
        (row,) if unit_axis == 0 else np.s_[:, row] for row in range(grad.shape[unit_axis])
    ]  # fmt: skip
    for unit in units:
        most = ratio * max(np.linalg.norm(weights[unit]), 1e-3)
        grad[unit] *= min(1.0, most / np.linalg.norm(grad[unit]))
    return grad


def oracle(unit_axis, learning_rate, weight_decay, clip_norm, clip_units, accumulate, average):
    params, means = {k: v.copy() for k, v in START.items()}, {k: v.copy() for k, v in START.items()}
    moments = {k: (np.zeros_like(v), np.zeros_like(v)) for k, v in START.items()}
    found = []
    for step in range(len(GRADS)):
        if (step + 1) % accumulate == 0:
            part, count = GRADS[step + 1 - accumulate : step + 1], step // accumulate
            grads = {k: np.mean([g[k] for g in part], 0) for k in START}
            if clip_norm is not None:
                norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
                grads = {k: g * min(1.0, clip_norm / norm) for k, g in grads.items()}
            if clip_units is not None:
                grads = {k: clipped(g, params[k], clip_units, unit_axis) for k, g in grads.items()}
            for k, g in grads.items():
                first = 0.9 * moments[k][0] + 0.1 * g
                second = 0.999 * moments[k][1] + 0.001 * g**2
                moments[k] = first, second
                move = first / (1 - 0.9 ** (count + 1))
                move = move / (np.sqrt(second / (1 - 0.999 ** (count + 1))) + 1e-8)
                params[k] = params[k] - learning_rate(count) * (move + weight_decay * params[k])
                means[k] = (average or 0.0) * means[k] + (1 - (average or 0.0)) * params[k]
        found.append({k: v.copy() for k, v in params.items()})
    return found, means


SETTINGS = {
    "adam": {},
    "decay": {"weight_decay": 0.3},
    "norm": {"clip_norm": 2.0},
    "units": {"clip_units": 0.5, "weight_decay": 0.1},
    "all": {"clip_norm": 4.0, "clip_units": 0.7, "accumulate": 2, "average": 0.6},
}


@pytest.mark.thrifty
@pytest.mark.parametrize("case", list(SETTINGS))
def test_updates_are_those_of_the_papers(kit, case):
    name = kit.__name__.removeprefix("fit_")
    schedule = kit.package.cosine_schedule(0.1, 0.02, 4)
    optim = kit.package.adamw(schedule, **SETTINGS[case])
    found, averages = (pyro_steps if name == "pyro" else numpyro_steps)(optim)
    defaults = {"weight_decay": 0.0, "clip_norm": None, "clip_units": None}
    options = defaults | {"accumulate": 1, "average": None} | SETTINGS[case]
    rate = lambda n: 0.02 + 0.04 * (1 + np.cos(np.pi * min(n / 4, 1.0)))  # noqa: E731
    expected, means = oracle(0 if name == "pyro" else 1, rate, **options)
    for step, params in enumerate(expected):
        for key, value in params.items():
            np.testing.assert_allclose(found[step][key], value, atol=2e-6, err_msg=f"{step} {key}")
    if options["average"]:
        for key, value in means.items():
            np.testing.assert_allclose(averages[key], value, atol=2e-6)
    other, _ = oracle(1 if name == "pyro" else 0, rate, **options | {"clip_units": 0.5})
    assert any(np.abs(other[-1][k] - v).max() > 1e-4 for k, v in expected[-1].items())


def test_torch_clips_units_as_optax_does():
    torch, optax = pytest.importorskip("torch"), pytest.importorskip("optax")
    clip = importlib.import_module("pyro_dvae.fit.optimisers").clip_units
    for shape in ((5, 4), (6, 3, 2, 2), (7,), ()):
        weights, grad = (np.asarray(RNG.normal(scale=c, size=shape)) for c in (1.0, 2.0))
        found = clip(torch.as_tensor(grad), torch.as_tensor(weights), 0.6).numpy()
        turned = [np.moveaxis(v, 0, -1) if v.ndim > 1 else v for v in (weights, grad)]
        transform = optax.adaptive_grad_clip(0.6)
        expected, _ = transform.update(turned[1], transform.init(turned[0]), turned[0])
        expected = np.moveaxis(expected, -1, 0) if expected.ndim > 1 else expected
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def optimiser(kit):
    rate = kit.package.warmup_schedule(kit.package.linear_schedule(0.03, 0.01, 8), 3)
    settings = {"weight_decay": 0.01, "clip_norm": 5.0, "clip_units": 0.3}
    return kit.package.adamw(rate, accumulate=2, average=0.7, **settings)


def test_a_run_goes_on_to_the_same_numbers(kit, tmp_path):
    """Cut between two updates, within a sum of gradients."""
    svi = kit.make_svi(optim=optimiser(kit))
    whole = run(kit, 9, svi)
    means = kit.arrays(kit.package.averaged(svi, whole))
    cut = run(kit, 5, kit.make_svi(optim=optimiser(kit)), folder=tmp_path, checkpoint_every=5)
    assert cut.num_steps == 5
    svi = kit.make_svi(seed=7, optim=optimiser(kit))
    resumed = run(kit, 9, svi, folder=tmp_path, resume=True)
    np.testing.assert_array_equal(whole.losses, resumed.losses)
    found = kit.arrays(kit.package.averaged(svi, resumed))
    trained = kit.arrays(resumed)
    for name, value in means.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    moved = [np.abs(trained[k] - found[k]).max() for k in found if trained[k].size]
    assert max(moved) > 1e-4
    svi = kit.make_svi(seed=8, optim=optimiser(kit))
    ended = run(kit, 9, svi, folder=tmp_path, resume=True)  # nothing is left to do
    for name, value in kit.arrays(kit.package.averaged(svi, ended)).items():
        np.testing.assert_array_equal(means[name], value, err_msg=name)
    other = kit.package.adamw(0.01, accumulate=3)
    with pytest.raises(ValueError, match="optim"):
        run(kit, 9, kit.make_svi(optim=other), folder=tmp_path, resume=True)
    without = dataclasses.replace(whole, svi_state=None) if hasattr(whole, "svi_state") else whole
    with pytest.raises(ValueError, match="keeps no averages"):
        kit.package.averaged(kit.make_svi(), without)


@pytest.mark.parametrize(
    ("args", "options", "name"),
    [
        ((0.0,), {}, "learning_rate"),
        ((0.1,), {"weight_decay": -1.0}, "weight_decay"),
        ((0.1,), {"clip_norm": 0.0}, "clip_norm"),
        ((0.1,), {"clip_units": float("nan")}, "clip_units"),
        ((0.1,), {"accumulate": 0}, "accumulate"),
        ((0.1,), {"average": 1.0}, "average"),
    ],
)
def test_what_is_out_of_range_is_named(kit, args, options, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        kit.package.adamw(*args, **options)
