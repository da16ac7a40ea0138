"""Likelihoods with two numbers for each entry, and the discretised logistic, against SciPy."""

import numpy as np
import pytest
from scipy import stats

RNG = np.random.default_rng(0)


def logistic(lab, loc, scale, num_values):
    kind = lab.module("distributions").DiscretizedLogistic
    return kind(lab.asarray(loc), lab.asarray(scale), num_values)


@pytest.mark.thrifty
@pytest.mark.parametrize("num_values", [2, 5, 256])
def test_its_masses_are_differences_of_the_distribution_function(lab, num_values):
    loc, scale = RNG.uniform(-2, num_values + 2, size=7), RNG.uniform(0.2, 30, size=7)
    values = np.arange(num_values)[:, None]
    fn = logistic(lab, loc, scale, num_values)
    found = np.exp(lab.numpy(fn.log_prob(lab.asarray(values.astype(float)))))
    edges = np.where(values < num_values - 1, stats.logistic.cdf(values + 0.5, loc, scale), 1.0)
    below = np.where(values > 0, stats.logistic.cdf(values - 0.5, loc, scale), 0.0)
    np.testing.assert_allclose(found, edges - below, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(found.sum(0), 1.0, rtol=1e-12)
    np.testing.assert_allclose(lab.numpy(fn.mean), (values * found).sum(0), rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_all_but_impossible_has_its_log_mass_and_gradient(lab, dtype):
    """A thousand scales away: log P = -(|x - loc| - 1/2) / scale + log(1 - exp(-1 / scale))."""
    values, scale = np.array([10.0, 200.0], dtype), 0.1
    fn = logistic(lab, np.array([110.0, 100.0], dtype), np.full(2, scale, dtype), 256)
    distance = np.array([100.0, 100.0]) - 0.5
    expected = -distance / scale + np.log(-np.expm1(-1 / scale))
    found = lab.numpy(fn.log_prob(lab.asarray(values)))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=1e-6)

    def total(loc):
        scales = lab.asarray(np.full(2, scale))
        kind = lab.module("distributions").DiscretizedLogistic
        return kind(loc, scales, 256).log_prob(lab.asarray(values.astype(float))).sum()

    slope = lab.gradient(total, np.array([110.0, 100.0]))
    np.testing.assert_allclose(slope, [-1 / scale, 1 / scale], rtol=1e-9)


def test_draws_have_its_masses(lab):
    n = 20_000
    fn = logistic(lab, np.array(2.2), np.array(0.9), 5)
    counts = np.bincount(lab.numpy(lab.draw(fn, (n,))).astype(int), minlength=5)
    probs = np.exp(lab.numpy(fn.log_prob(lab.asarray(np.arange(5.0)))))
    assert np.all(np.abs(counts - n * probs) < 5 * np.sqrt(n * probs * (1 - probs)))
    wrong = np.roll(probs, 1)  # negative control
    assert np.any(np.abs(counts - n * wrong) > 5 * np.sqrt(n * wrong * (1 - wrong)))


def head(lab, name, **options):
    return getattr(lab.module("models"), name)(**options)


@pytest.mark.parametrize("bounds", [None, (0.01, 1.0)])
def test_gaussian_heads(lab, bounds):
    likelihood = head(lab, "GaussianHeads", variance=0.3, bounds=bounds)
    outputs, x = RNG.normal(size=(4, 3, 2, 6)), RNG.normal(size=(4, 3, 2, 3))
    if bounds is None:
        variance = 0.3 * np.exp(outputs[..., 3:])
    else:
        share = np.log(0.3 / 0.01) / np.log(100.0)
        raw = outputs[..., 3:] + np.log(share / (1 - share))
        variance = 0.01 * 100.0 ** (1 / (1 + np.exp(-raw)))
    expected = stats.norm.logpdf(x, outputs[..., :3], np.sqrt(variance)).sum((1, 2, 3))
    fn = likelihood(lab.asarray(outputs), 3)
    np.testing.assert_allclose(lab.numpy(fn.log_prob(lab.asarray(x))), expected, rtol=1e-10)
    mean = lab.asarray(x[0])
    at_start = likelihood(likelihood.link(mean)[None], 3)
    np.testing.assert_allclose(lab.numpy(at_start.mean)[0], x[0], rtol=1e-12)
    np.testing.assert_allclose(lab.numpy(at_start.variance), 0.3, rtol=1e-9)


def test_logistic_heads(lab):
    likelihood = head(lab, "LogisticHeads", num_values=5, scale=0.2)
    outputs, x = RNG.normal(size=(4, 3, 4)), RNG.integers(5, size=(4, 3, 2))
    outputs[0, 0, 2] = -50.0  # a scale below the least
    scale = np.maximum(0.2 * 4 * np.exp(outputs[..., 2:]), 2 * np.exp(-7.0))
    loc = 2.0 * (1 + outputs[..., :2])
    above = np.where(x < 4, stats.logistic.cdf(x + 0.5, loc, scale), 1.0)
    below = np.where(x > 0, stats.logistic.cdf(x - 0.5, loc, scale), 0.0)
    fn = likelihood(lab.asarray(outputs), 2)
    found = np.exp(lab.numpy(fn.base_dist.log_prob(lab.asarray(x))))
    np.testing.assert_allclose(found, above - below, atol=1e-12)
    start = likelihood.link(lab.asarray(np.full((3, 2), 3.0)))
    np.testing.assert_allclose(lab.numpy(start)[:, :2], 0.5)


BAD = {
    "variance": ("GaussianHeads", {"variance": 2.0, "bounds": (0.01, 1.0)}, "`variance`"),
    "values": ("LogisticHeads", {"num_values": 1}, "`num_values` must be at least 2"),
    "scale": ("LogisticHeads", {"scale": 0.0}, "`scale` must be positive"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_what_cannot_be_is_refused_by_name(lab, case):
    name, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        head(lab, name, **options)


def test_outputs_without_two_numbers_for_each_entry_are_refused(lab):
    with pytest.raises(ValueError, match=r"two numbers for each entry.*output_shape"):
        head(lab, "GaussianHeads")(lab.asarray(np.zeros((2, 3, 3))), 2)


@pytest.mark.thrifty
@pytest.mark.parametrize("kind", ["gaussian", "logistic"])
def test_a_convolutional_vae_of_colour_images_learns(lab, kind):
    """Two kinds of images: the loss falls by nats, and parameters of all networks move."""
    nets, models, guides = (lab.module(room) for room in ("nets", "models", "guides"))
    x = np.zeros((16, 4, 4, 3), np.float32)
    x[::2, :2], x[1::2, :, 2:] = 1.0, 1.0
    name = "GaussianHeads" if kind == "gaussian" else "LogisticHeads"
    likelihood = head(lab, name, **({} if kind == "gaussian" else {"num_values": 2}))
    decoder = nets.ConvDecoder(4, 3, (4, 4, 6), embed_dim=4, width=8, num_blocks=1)
    model = models.DiscreteVAE(decoder, models.UniformPrior(4, 3), likelihood)
    guide = guides.IndependentGuide(nets.ConvEncoder((4, 4, 3), 4, 3, width=8, num_blocks=1))
    x = lab.asarray(x)
    trainer = lab.Trainer(model, guide, x, lr=0.03)
    before, first = trainer.parameters(), evidence(lab, trainer, x)
    trainer.run(30, x)
    after = trainer.parameters()
    assert all(np.abs(b - a).max() > 0 for b, a in zip(before, after, strict=True))
    assert evidence(lab, trainer, x) > first + 100.0


def evidence(lab, trainer, x):
    """A draw of the ELBO of all data, in nats."""
    if lab.name == "pyro":
        return -trainer.svi.evaluate_loss(x)
    return -float(trainer.svi.evaluate(trainer.state, x))
