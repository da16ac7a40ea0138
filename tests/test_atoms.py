"""Sums of atoms with normal amplitudes, summed out: the law and the amplitudes, against SciPy."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

RNG = np.random.default_rng(0)
ATOMS = RNG.normal(size=(2, 3, 4))
ATOMS[1, 2] = 0.0  # one that is absent
NOISE = np.array([[0.3], [0.7]])
X = RNG.normal(size=(5, 2, 4))


def law(lab, atoms=ATOMS, noise=NOISE):
    return lab.module("distributions").NormalAtoms(lab.asarray(atoms), lab.asarray(noise))


def exact(atoms, noise, x):
    """Log-densities ``(samples, batch)``."""
    spreads = atoms.swapaxes(-1, -2) @ atoms + np.eye(4) * noise[..., None] ** 2
    each = [multivariate_normal(np.zeros(4), spread) for spread in spreads]
    return np.stack([fn.logpdf(x[:, n]) for n, fn in enumerate(each)], -1)


def test_the_density_is_that_of_a_normal_with_its_slope(lab):
    fn = law(lab)
    np.testing.assert_allclose(lab.numpy(fn.log_prob(lab.asarray(X))), exact(ATOMS, NOISE, X))
    larger = fn.expand((5, 2))
    np.testing.assert_allclose(lab.numpy(larger.log_prob(lab.asarray(X))), exact(ATOMS, NOISE, X))
    kind = type(fn)
    found = lab.gradient(
        lambda atoms: kind(atoms, lab.asarray(NOISE)).log_prob(lab.asarray(X)).sum(),
        ATOMS,
    )
    ends = []
    for sign in (1, -1):
        moved = ATOMS.copy()
        moved[0, 1, 2] += sign * 1e-5
        ends.append(exact(moved, NOISE, X).sum())
    np.testing.assert_allclose(found[0, 1, 2], (ends[0] - ends[1]) / 2e-5, rtol=1e-6)
    assert found[1, 2] == pytest.approx(0.0, abs=1e-12)  # of an absent atom either sign is as good


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_single_precision_is_enough(lab, scale):
    """Where the noise is a thousandth of the data or the reverse, to a few roundings."""
    atoms, noise = (ATOMS * scale).astype("f"), np.ones((2, 1), "f")
    x = (np.sqrt(scale**2 + 1) * X).astype("f")
    found = lab.numpy(law(lab, atoms, noise).log_prob(lab.asarray(x)))
    expected = exact(atoms.astype(float), noise.astype(float), x.astype(float))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_amplitudes_given_data(lab):
    mean, spread = (lab.numpy(part) for part in law(lab).amplitudes(lab.asarray(X)))
    precision = np.eye(3) + ATOMS @ ATOMS.swapaxes(-1, -2) / NOISE[..., None] ** 2
    np.testing.assert_allclose(spread, np.linalg.inv(precision), atol=1e-12)
    seen = np.einsum("nhd,snd->snh", ATOMS, X) / NOISE**2
    np.testing.assert_allclose(mean, np.einsum("nhk,snk->snh", spread, seen), atol=1e-12)
    np.testing.assert_allclose(mean[:, 1, 2], 0.0, atol=1e-12)
    assert spread[1, 2, 2] == pytest.approx(1.0)


def test_draws_have_its_moments(lab):
    fn, num_draws = law(lab), 20_000
    draws = lab.numpy(lab.draw(fn, (num_draws,)))
    assert draws.shape == (num_draws, 2, 4)
    spreads = ATOMS.swapaxes(-1, -2) @ ATOMS + np.eye(4) * NOISE[..., None] ** 2
    found = np.einsum("sni,snj->nij", draws, draws) / num_draws
    variances = np.einsum("nii->ni", spreads)
    error = np.sqrt((variances[:, :, None] * variances[:, None] + spreads**2) / num_draws)
    assert (np.abs(found - spreads) < 5 * error).all()
    assert (np.abs(draws.mean(0)) < 5 * np.sqrt(variances / num_draws)).all()
    np.testing.assert_allclose(lab.numpy(fn.variance), variances)
    assert not lab.numpy(fn.mean).any()


@pytest.mark.parametrize(("atoms", "noise"), [((4,), ()), ((2, 3, 4), (2,)), ((3, 4), (2, 1))])
def test_shapes_that_do_not_fit_are_refused(lab, atoms, noise):
    with pytest.raises(ValueError, match=r"`atoms` must be \(\*batch, H, D\).*noise\[\.\.\., None"):
        law(lab, np.ones(atoms), np.ones(noise))
