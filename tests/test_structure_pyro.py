"""Programs whose structure changes, or that mix particles: the right value, or a refusal.

The right values are sums over all states, made by running the programs one state at a time.
"""

from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
from any_pyro import LOOP, SAMPLED, assert_mean, bits, exact_loss, fresh, quiet  # noqa: E402
from pyro import poutine  # noqa: E402
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate  # noqa: E402

from pyro_dvae.infer import (  # noqa: E402
    Exact_ELBO,
    Reinforce_ELBO,
    Truncated_ELBO,
    TruncatedGuide,
)

__all__ = ["fresh"]  # a fixture of every test here

# ------------------------------------------------------------------- structure is what a call has


def chain(x):
    with pyro.plate("sequences", len(x)):
        z = torch.zeros(len(x))
        for t in range(x.shape[1]):
            z = pyro.sample(f"z_{t}", dist.Bernoulli(0.2 + 0.6 * z))
            pyro.sample(f"x_{t}", dist.Normal(2 * z, 1.0), obs=x[:, t])


def chain_guide(x):
    with pyro.plate("sequences", len(x)):
        for t in range(x.shape[1]):
            pyro.sample(f"z_{t}", dist.Bernoulli(logits=x[:, t] - 1))


def test_sequences_of_another_length_are_what_they_are():
    short, long, wide = torch.randn(4, 2), torch.randn(4, 4), torch.randn(7, 2)
    elbo, stock = Exact_ELBO(), TraceEnum_ELBO(max_plate_nesting=1)
    for x in (short, long, wide, short):
        expected = stock.loss(chain, config_enumerate(chain_guide), x)
        np.testing.assert_allclose(elbo.loss(chain, chain_guide, x), expected, rtol=1e-10)


@pytest.mark.parametrize("loss", SAMPLED)
def test_sampled_losses_follow_the_structure(loss):
    """The same draws whether or not the loss has met another structure before."""
    elbo, fresh = loss(4), loss(4)
    elbo.loss(chain, chain_guide, torch.randn(4, 2))
    x, found = torch.randn(3, 5), []
    for each in (elbo, fresh):
        pyro.set_rng_seed(1)
        found.append(each.loss(chain, chain_guide, x))
    assert found[0] == found[1]


def test_states_that_were_begun_for_other_sites_are_refused():
    guide, elbo = TruncatedGuide(chain, 4), Truncated_ELBO()
    elbo.loss_and_grads(chain, guide, torch.randn(4, 2))
    with pytest.raises(
        ValueError, match=r"z_2.*All data must have the same discrete sites; pad them"
    ):
        elbo.loss(chain, guide, torch.randn(4, 5))


def labelled(x, label=None):
    with pyro.plate("data", 3):
        label = pyro.sample("label", dist.Categorical(torch.ones(3) / 3), obs=label)
        pyro.sample("x", dist.Normal(1.0 * label, 1.0), obs=x)


def labelled_guide(_x, label=None):
    if label is None:
        with pyro.plate("data", 3):
            pyro.sample("label", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))


def test_labels_may_come_and_go():
    x, label, elbo = torch.randn(3), torch.tensor([0, 1, 2]), Exact_ELBO()
    expected = Trace_ELBO().loss(labelled, labelled_guide, x, label)
    stock = TraceEnum_ELBO(max_plate_nesting=1)
    unlabelled = stock.loss(labelled, config_enumerate(labelled_guide), x)
    for _ in range(2):
        np.testing.assert_allclose(elbo.loss(labelled, labelled_guide, x, label), expected)
        np.testing.assert_allclose(elbo.loss(labelled, labelled_guide, x), unlabelled)


# ----------------------------------------------------------------- structure depends on the draws


def counting(y):
    n = 0
    while n < 4 and bool(pyro.sample(f"more_{n}", dist.Bernoulli(0.5))):
        n += 1
    if y is not None:
        pyro.sample("y", dist.Normal(0.9 * n, 1.0), obs=y)


def counting_guide(_y):
    counting(None)


Y = 2.3
COUNTS = [0.5, 0.25, 0.125, 0.0625, 0.0625]


@pytest.mark.parametrize("loss", SAMPLED)
@pytest.mark.parametrize("num_particles", [2, 5])
def test_a_loop_over_draws_has_the_mean_over_its_lengths(loss, num_particles):
    y = torch.tensor(Y)
    values = [-dist.Normal(0.9 * n, 1.0).log_prob(y).item() for n in range(5)]
    elbo = loss(num_particles)
    assert_mean(
        lambda: quiet(lambda: elbo.loss(counting, counting_guide, y)), np.dot(COUNTS, values)
    )


def test_no_draw_changes_the_weight_of_a_datum():
    """A site that only some draws lead to may be weighed otherwise; losses weigh draws alike."""
    led = []

    def latents(p):
        with poutine.scale(scale=0.5):
            z = pyro.sample("z", dist.Bernoulli(p))
        if z:
            with poutine.scale(scale=2.0):
                pyro.sample("w", dist.Bernoulli(0.3))
        led.append(bool(z))
        return z

    def model():
        z = latents(0.5)
        with poutine.scale(scale=0.5):
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(0.7))

    def guide():
        latents(0.4)

    elbo, found = SAMPLED[1](2), {}
    for seed in range(12):
        pyro.set_rng_seed(seed)
        led.clear()
        particles = quiet(lambda: elbo.run(model, guide, (), {}))
        found[any(led[-4:])] = float(particles.scale)  # of both programs, two particles
    assert found == {True: 0.5, False: 0.5}


def test_particles_see_the_same_rows_after_one_that_has_no_plate():
    taken = []

    def program():
        with pyro.plate("data", 1):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor([0.5])))
        if z.sum() > 0:
            with pyro.plate("rows", 50, 2) as rows:
                pyro.sample("w", dist.Bernoulli(0.3 * torch.ones(2)))
            taken.append(tuple(rows.tolist()))
        return bool(z.sum() > 0)

    elbo, met = SAMPLED[0](8), []
    for seed in range(3):
        pyro.set_rng_seed(seed)
        quiet(lambda: elbo.loss(program, lambda: met.append(program()), *()))
        seen = met[-8:]
        assert True in seen[seen.index(False) :]  # some come after one that lacks the plate
        assert len(set(taken[-2 * sum(seen) :])) == 1


def test_what_lists_states_refuses_a_loop_over_draws():
    y = torch.tensor(Y)
    for seed in range(4):
        pyro.set_rng_seed(seed)
        with pytest.raises(ValueError, match="depends on the values of others"):
            quiet(lambda: Exact_ELBO().loss(counting, counting_guide, y))


def test_what_lists_states_refuses_counts_that_come_and_go():
    """Other draws show whether their number depends on one, and may lack the site."""

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        if z:
            pyro.sample("n", dist.Binomial(torch.tensor(2.0), 0.4))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(0.7))

    for seed in range(6):
        pyro.set_rng_seed(seed)
        with pytest.raises(ValueError, match=r"depends? on|plate"):
            quiet(lambda: TruncatedGuide(model, 4)())


# ------------------------------------------------------------------ programs that mix particles

STRENGTH = torch.tensor([0.9, 0.8, 0.7, 0.6])
MIXERS = {
    "prod": lambda z: torch.prod(1 - STRENGTH.to(z) * z),
    "max": lambda z: z.max(),
    "sum": lambda z: z.sum() / 4,
    "centred": lambda z: (z - z.mean()).abs().amax(-1),
    "flip": lambda z: z.flip(0)[..., 0],
    "roll": lambda z: z.roll(1, 0)[..., 0],
    "first": lambda z: z[0],
    "left": lambda z: z.reshape(-1)[:4].sum() / 4,
}
RARE = 0.05


def mixing(mix):
    def model(y):
        with pyro.plate("causes", 4):
            z = pyro.sample("z", dist.Bernoulli(RARE))
        pyro.sample("y", dist.Normal(2.0 * mix(z), 1.0), obs=y)

    return model


def rare_guide(_y):
    with pyro.plate("causes", 4):
        pyro.sample("z", dist.Bernoulli(RARE))


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("seed", range(2))
def test_mixed_particles_are_noticed(name, seed):
    """On latents so rare that three draws seldom differ."""
    model, y = mixing(MIXERS[name]), torch.tensor(0.3)
    expected = exact_loss(model, rare_guide, {"z": bits(4)}, y)
    pyro.set_rng_seed(seed)
    with pytest.warns(UserWarning, match=LOOP):
        found = Exact_ELBO().loss(model, rare_guide, y)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_weak_trace_of_other_particles_is_noticed():
    """In double precision; a thousandth of the value was taken for rounding."""
    model, y = mixing(lambda z: 1e-4 * z.sum()), torch.tensor(0.3)
    expected = exact_loss(model, rare_guide, {"z": bits(4)}, y)
    with pytest.warns(UserWarning, match=LOOP):
        found = Exact_ELBO().loss(model, rare_guide, y)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_size_that_is_a_number_of_particles_by_chance_is_noticed():
    """Of any number of data: five particles are tried, and `len(z)` is theirs."""
    for size in range(1, 9):

        def program(y, size=size):
            with pyro.plate("causes", size):
                z = pyro.sample("z", dist.Bernoulli(0.4))
                pyro.sample("y", dist.Normal(z / len(z), 1.0), obs=y)

        y = torch.linspace(-1.0, 1.0, size)
        expected = -dist.Normal(torch.tensor([[0.0], [1.0]]) / size, 1.0).log_prob(y)
        guide = pyro.poutine.block(program, hide=["y"])
        with pytest.warns(UserWarning, match=LOOP):
            found = Exact_ELBO().loss(program, guide, y)
        wanted = (torch.tensor([[0.6], [0.4]]) * expected).sum()
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("way", ["mode", "flag"])
def test_a_verdict_holds_for_networks_in_their_mode_and_for_flags_as_they_were(way):
    """Batch normalisation mixes particles while it trains alone; so may a flag in an argument."""

    @dataclass
    class Batch:
        y: torch.Tensor
        mix: bool = False

    class Decoder(torch.nn.Module):
        def forward(self, z, mix):
            return z.sum() if self.training and mix else z.sum(-1, True)

    decoder = Decoder()

    def model(batch):
        with pyro.plate("causes", 4):
            z = pyro.sample("z", dist.Bernoulli(RARE))
        pyro.sample("y", dist.Normal(decoder(z, batch.mix), 1.0), obs=batch.y)

    y, elbo = torch.tensor(0.3), Exact_ELBO()
    decoder.train(way == "flag")
    elbo.loss(model, rare_guide, Batch(y, mix=way == "mode"))
    decoder.train()
    batch = Batch(y, mix=True)
    with pytest.warns(UserWarning, match=LOOP):
        found = elbo.loss(model, rare_guide, batch)
    expected = exact_loss(model, rare_guide, {"z": bits(4)}, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_programs_that_broadcast_run_at_once():
    """Negative control: no warning, and one run of the model for all states."""
    runs = []

    def model(y):
        runs.append(1)
        with pyro.plate("causes", 4):
            z = pyro.sample("z", dist.Bernoulli(RARE))
        pyro.sample("y", dist.Normal(z.sum(-1, True), 1.0), obs=y)

    elbo, y = Exact_ELBO(), torch.tensor(1.0)
    elbo.loss(model, rare_guide, y)
    runs.clear()
    np.testing.assert_allclose(
        elbo.loss(model, rare_guide, y), exact_loss(model, rare_guide, {"z": bits(4)}, y)
    )
    assert len(runs) == 1 + 16  # ours, and one for each state of the oracle


def test_noise_does_not_hide_that_particles_are_mixed():
    """A program with dropout disagrees with itself; the others must not notice one that moves."""

    def model(y, mix):
        with pyro.plate("causes", 4):
            z = pyro.sample("z", dist.Bernoulli(RARE))
        noisy = torch.nn.functional.dropout(torch.ones(3), 0.5).sum()
        total = z.sum() if mix else z.sum(-1, True)
        pyro.sample("y", dist.Normal(total + noisy, 1.0), obs=y)

    def guide(y, mix):
        rare_guide(y)

    elbo, y = Reinforce_ELBO(4), torch.tensor(1.0)
    with pytest.warns(UserWarning, match=LOOP):
        elbo.loss(model, guide, y, True)
    Reinforce_ELBO(4).loss(model, guide, y, False)


def repeated(y):
    n = pyro.sample("n", dist.Categorical(torch.ones(5) / 5))
    total = torch.tensor(0.0)
    for _ in range(n):
        total = total + 0.9
    pyro.sample("y", dist.Normal(total, 1.0), obs=y)


def repeated_guide(_y):
    pyro.sample("n", dist.Categorical(torch.tensor([0.1, 0.2, 0.3, 0.2, 0.2])))


def test_any_error_on_meeting_particles_means_one_by_one():
    y = torch.tensor(Y)
    expected = exact_loss(repeated, repeated_guide, {"n": list(torch.arange(5))}, y)
    with pytest.warns(UserWarning, match=LOOP):
        np.testing.assert_allclose(Exact_ELBO().loss(repeated, repeated_guide, y), expected)


# ------------------------------------------------------------------------- what depends on what


@pytest.mark.parametrize("ask", ["if", "item", "index", "numpy"])
def test_dependence_through_python_is_seen(ask):
    """Latents under a plate, an observation outside of it, and no tensor between the two."""
    ways = {
        "if": lambda z: 1.5 if z.sum() > 1 else -0.5,
        "item": lambda z: 0.7 * z.sum().item(),
        "index": lambda z: [0.0, 1.0, -1.0, 2.0][int(z.sum())],
        "numpy": lambda z: float(np.asarray(z.detach()).sum() ** 2),
    }

    def model(y):
        with pyro.plate("causes", 3):
            z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("y", dist.Normal(torch.tensor(ways[ask](z)), 1.0), obs=y)

    def guide(y):
        logits = pyro.param("logits", torch.tensor([0.3, -0.2, 0.8]))
        with pyro.plate("causes", 3):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    y = torch.tensor(Y)
    guide(y)
    expected = exact_loss(model, guide, {"z": bits(3)}, y)
    (slope,) = torch.autograd.grad(expected, pyro.param("logits").unconstrained())
    for vectorize in (True, False):
        elbo = Exact_ELBO(vectorize_particles=vectorize)
        found = quiet(lambda elbo=elbo: elbo.loss_and_grads(model, guide, y))
        leaf = pyro.param("logits").unconstrained()
        np.testing.assert_allclose(found, expected.detach(), rtol=1e-10)
        np.testing.assert_allclose(leaf.grad, slope, rtol=1e-8)
        leaf.grad = None
