"""A recorded pass: its repetition is what another pass would be, or there is none."""

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
from torch import nn  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.nn import functional  # noqa: E402

from pyro_dvae.infer import Truncated_ELBO, TruncatedGuide  # noqa: E402
from pyro_dvae.infer.truncated import replay as repeating  # noqa: E402
from pyro_dvae.infer.truncated import scoring  # noqa: E402
from pyro_dvae.infer.truncated.replay import repeatable_pass  # noqa: E402

torch.manual_seed(0)
WEIGHT, BIAS = torch.randn(8, 8), torch.randn(8)
SHAPE = (3, 4, 8)


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, SHAPE, dtype=torch.uint8, generator=generator)


def layers(codes):
    z = codes.float()
    hidden = functional.relu(functional.linear(z, WEIGHT, BIAS))
    kept = hidden.view(12, 8)
    out = torch.tanh(functional.linear(hidden, WEIGHT))
    return (out - z).square().sum(-1) + kept.view(3, 4, 8).sum(-1) - out.mean(-1)


def in_place(codes):
    z = codes.float()
    first = z[..., 0]
    z += 1.0
    functional.relu(z, inplace=True)
    z[..., 1].mul_(first)
    return z.exp().sum(-1) + first


def written_into(codes):
    total = torch.zeros(3, 4)
    for column in codes.float().unbind(-1):
        total += column.exp()
    ones = codes.new_ones(3, 4).float()
    ones[:, 1] = total[:, 2]
    return total * ones


def by_index(codes):
    return WEIGHT[codes.long()].sum((-1, -2)) + codes.new_zeros(()).float()


def in_parts(codes):
    left, right = codes.float().split(4, -1)
    both = torch.stack([left, right]).sum((0, -1))
    return torch.cat([left * 2.0, right], -1).logsumexp(-1) + both + left.max(-1).values


def needed_later(codes):
    z = codes.float()
    shifted = z.view(12, 8) + 1.0
    return shifted.relu().view(3, 4, 8).sum(-1) * z.sum(-1) + shifted.view(3, 4, 8)[..., 0]


def of_other_types(codes):
    z = codes.float() - 0.5
    positive = z > 0.0
    detached = (z * 2.0).detach() + 1.0
    return torch.where(positive, detached, z.double()).float().sum(-1)


def as_it_is(codes):
    return codes.float().view(12, 8)[2:4], codes[:, 0]


def constant(codes):
    return torch.ones(3, 4) + codes.new_zeros(())


def transposed(codes):
    z = codes.float().transpose(0, 1) * 2.0
    return (z.contiguous() + z).permute(1, 0, 2).sum(-1)


def activations(codes):
    z = functional.linear(codes.float(), WEIGHT, BIAS)
    for activation in (
        functional.elu,
        functional.gelu,
        functional.hardtanh,
        functional.leaky_relu,
        functional.silu,
        functional.softplus,
        lambda z: functional.elu(z, 0.5),
        lambda z: functional.gelu(z, approximate="tanh"),
        lambda z: functional.hardtanh(z, -0.5, 2.0),
        lambda z: functional.leaky_relu(z, 0.3),
        lambda z: functional.softplus(z, 2.0, 3.0),
    ):
        z = activation(z + 0.5) - 0.3
    return functional.mse_loss(z, torch.ones_like(z), reduction="none").sum(-1)


FUNCTIONS = [
    layers,
    activations,
    in_place,
    written_into,
    by_index,
    in_parts,
    needed_later,
    of_other_types,
    transposed,
    lambda codes: as_it_is(codes)[0],
    lambda codes: as_it_is(codes)[1],
    constant,
    lambda codes: torch.ones(3, 4),
]


@pytest.mark.parametrize("large", [0, 2**16])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_a_repetition_equals_another_pass(monkeypatch, function, large):
    monkeypatch.setattr(repeating, "_LARGE", large)  # from which on results share their memory
    found, replay = repeatable_pass(function, inputs(0))
    assert torch.equal(found, function(inputs(0)))
    for seed in range(1, 5):
        codes = inputs(seed)
        before = codes.clone()
        assert torch.equal(replay(codes), function(codes))
        assert torch.equal(codes, before)


def test_what_a_program_keeps_is_left_alone(monkeypatch):
    monkeypatch.setattr(repeating, "_LARGE", 0)
    kept = []

    def keeping(codes):
        if not kept:
            kept.append(torch.arange(8.0) * 2.0)  # made once, in the pass that is recorded
        kept.append(codes.float())
        z = kept[-1] + 1.0
        return (z * kept[0]).exp().log().sum(-1)

    found, replay = repeatable_pass(keeping, inputs(0))
    before = [value.clone() for value in [found, *kept]]
    torch.testing.assert_close(replay(inputs(1)), keeping(inputs(1)), rtol=0, atol=0)
    assert all(map(torch.equal, [found, *kept[:2]], before))


def test_results_share_memory_once_nothing_needs_them(monkeypatch):
    monkeypatch.setattr(repeating, "_LARGE", 0)

    def chain(codes):
        z = codes.float()
        for _ in range(20):
            z = functional.linear(z, WEIGHT).tanh()
        return z.sum(-1)

    _, replay = repeatable_pass(chain, inputs(0))
    places = {step.keywords["out"].untyped_storage()._cdata for step in replay.steps[1:]}
    assert len(places) <= 4  # of 41 results
    torch.testing.assert_close(replay(inputs(1)), chain(inputs(1)), rtol=0, atol=0)


class Counting:
    """Writes to a tensor of its own."""

    def __init__(self):
        self.total = torch.zeros(8)

    def __call__(self, codes):
        self.total += codes.float().mean((0, 1))
        return (codes.float() * self.total).sum(-1)


DROPOUT = nn.Dropout(0.5)


@pytest.mark.parametrize(
    "function",
    [
        lambda codes: DROPOUT(codes.float()).sum(-1),
        lambda codes: codes.float().sum(-1) + torch.randn(4),
        lambda codes: codes.float().sum(-1) if codes.sum() > 5 else codes.float().mean(-1),
        lambda codes: codes.float().sum(-1) * float(codes.float().mean()),
        lambda codes: torch.tensor(codes.tolist()).float().sum(-1),
        lambda codes: torch.from_numpy(codes.numpy()).float().sum(-1),
        lambda codes: codes.float().sum(-1) * float(np.asarray(codes.float()).mean()),
        lambda codes: torch.from_dlpack(codes.float()).sum(-1),
        lambda codes: codes.float().sum(-1) + codes[codes > 0].sum(),
        lambda codes: WEIGHT.sum() * BIAS,
        Counting(),
    ],
)
def test_what_may_differ_each_time_is_not_repeated(function):
    _, replay = repeatable_pass(function, inputs(0))
    assert replay is None


def test_a_graph_that_is_kept_says_what_was_true_before():
    """Why torch's own takes no recording's place: it would have to be made anew as well."""
    now = {"data": torch.linspace(-1, 1, 8), "rate": 1.0}  # another minibatch, a schedule

    def weighed(codes):
        return (codes.float() * now["data"].exp()).sum(-1) * now["rate"]

    graph = make_fx(weighed)(inputs(0))
    assert torch.equal(graph(inputs(1)), weighed(inputs(1)))
    for change in ({"data": torch.linspace(1, -1, 8)}, {"rate": 0.5}):
        now |= change
        assert not torch.allclose(graph(inputs(1)), weighed(inputs(1)), rtol=0.1)
        _, replay = repeatable_pass(weighed, inputs(0))
        assert torch.equal(replay(inputs(1)), weighed(inputs(1)))


def test_data_may_leave_torch():
    def scaled(codes):
        return codes.float().sum(-1) * float(WEIGHT.numpy().mean())

    _, replay = repeatable_pass(scaled, inputs(0))
    assert torch.equal(replay(inputs(1)), scaled(inputs(1)))


def test_a_program_s_own_error_is_seen():
    def broken(codes):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        repeatable_pass(broken, inputs(0))


# --------------------------------------------------------------------------------- in an E-step


class Model(nn.Module):
    """Binary causes, and what a network makes of them."""

    def __init__(self, inner=nn.Identity):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), inner(), nn.Linear(9, 5))
        self.logits = nn.Parameter(torch.randn(12))
        self.passes = []  # no number, which could be a setting and would have plans of its own

    def forward(self, x, index=None):
        self.passes.append([])
        pyro.module("model", self)
        with pyro.plate("data", 40, subsample=index):
            z = pyro.sample("z", dist.Bernoulli(logits=self.logits).to_event(1))
            loc = self.net(z)
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)


class Escaping(nn.Module):
    """Leaves torch, where no recording follows."""

    def forward(self, value):
        return torch.from_numpy(value.detach().numpy() * 2.0)


def in_pieces(monkeypatch, rows):
    """Score so many states a repetition; 0 for none."""
    monkeypatch.setattr(scoring, "_CODES_REPEATED", rows * 40 * 12)
    monkeypatch.setattr(scoring, "_REPETITIONS", 2 if rows else 10**9)


def e_steps(model, rows, monkeypatch, num_steps=3):
    """Bounds after each step, with other parameters in between."""
    in_pieces(monkeypatch, rows)
    pyro.set_rng_seed(1)
    x = torch.randn(40, 5)
    guide, elbo = TruncatedGuide(model, 8), Truncated_ELBO(generations=2)
    bounds = []
    for step in range(num_steps):
        with torch.no_grad():
            for value in model.parameters():
                value.fill_(0.1 * step).add_(torch.linspace(-1, 1, value.numel()).view_as(value))
        elbo.e_step(model, guide, x)
        bounds.append(guide.posterior(x).bound)
    return torch.stack(bounds), guide


def repeats_of(guide):
    """Whether passes were repeated, of calls of all kinds that it has seen."""
    plans = [plan for found in guide._plans._plans.values() for plan in found]
    return {is_repeated for plan in plans for is_repeated in plan.pair.notes.values()}


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_an_e_step_is_the_same_by_repetition(monkeypatch, rows):
    plain, _ = e_steps(Model(), 0, monkeypatch)
    model = Model()
    repeated, guide = e_steps(model, rows, monkeypatch)
    assert repeats_of(guide) == {True}
    torch.testing.assert_close(repeated, plain, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain[0], plain[1], atol=0.1)  # other parameters, other bounds


def test_the_guide_samples_by_repetition_beside_a_gradient(monkeypatch):
    """As another loss would call it; the model's parameters ask for a gradient."""
    in_pieces(monkeypatch, 2)
    guide, x = TruncatedGuide(Model(), 12), torch.randn(40, 5)
    draw = guide(x)["z"]
    assert repeats_of(guide) == {True}
    assert draw.shape == (40, 12)
    assert not draw.requires_grad


def test_repetitions_spare_passes(monkeypatch):
    few, many = Model(), Model()
    e_steps(few, 1, monkeypatch)
    in_pieces(monkeypatch, 1)
    monkeypatch.setattr(scoring, "_CODES_AT_ONCE", 40 * 12)
    e_steps(many, 0, monkeypatch)
    assert len(few.passes) < len(many.passes) / 5


class Changing(Model):
    """What it computes depends on much beside its states, and all of that changes."""

    def __init__(self):
        super().__init__()
        self.log_noise = nn.Parameter(torch.zeros(()))
        self.register_buffer("table", torch.ones(12))
        self.settings = {"sign": 1.0, "flipped": False}

    def change(self):
        """Another number of each kind: of a buffer, in a dict, and what Python branches on."""
        self.table = self.table * 1.5
        self.settings = {"sign": -self.settings["sign"], "flipped": not self.settings["flipped"]}

    def forward(self, x, index=None):
        weight = self.table.softmax(0) * self.settings["sign"]
        with pyro.plate("data", 40, subsample=index):
            z = pyro.sample("z", dist.Bernoulli(logits=self.logits).to_event(1))
            loc = self.net(1 - z if self.settings["flipped"] else z) + (z @ weight)[..., None]
            pyro.sample("x", dist.Normal(loc, self.log_noise.exp()).to_event(1), obs=x)


def changing_e_steps(monkeypatch, rows):
    model = Changing()
    found = []
    for seed in range(3):
        bounds, guide = e_steps(model, rows, monkeypatch, num_steps=1 + seed)
        found.append(bounds[-1])
        model.change()
    assert repeats_of(guide) <= {rows > 0}
    return torch.stack(found)


def test_what_a_program_computes_of_other_things_is_computed_anew(monkeypatch):
    plain, repeated = changing_e_steps(monkeypatch, 0), changing_e_steps(monkeypatch, 3)
    torch.testing.assert_close(repeated, plain, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain[0], plain[1], atol=0.1)


def test_what_cannot_be_repeated_is_run(monkeypatch):
    _, guide = e_steps(Model(lambda: nn.Dropout(0.5)), 2, monkeypatch)
    assert repeats_of(guide) == {False}


@pytest.mark.parametrize(("dtype", "is_repeated"), [(torch.float32, True), (torch.float64, False)])
def test_a_repetition_that_is_a_little_off_shows_in_double_precision(
    monkeypatch, dtype, is_repeated
):
    def a_little_off(function, words):
        scores, repeat = repeatable_pass(function, words)
        return scores, lambda words: repeat(words) * (1 + 3e-5)

    monkeypatch.setattr(scoring, "repeatable_pass", a_little_off)
    monkeypatch.setattr(torch, "randn", partial(torch.randn, dtype=dtype))
    _, guide = e_steps(Model().to(dtype), 2, monkeypatch, num_steps=1)
    assert repeats_of(guide) == {is_repeated}


def test_states_that_leave_tensors_are_refused(monkeypatch):
    """Nobody knows which datum depends on whose states then."""
    with (
        pytest.warns(UserWarning, match=r"Python asks for the values of \['z'\] under plate"),
        pytest.raises(ValueError, match="must be under a plate that they share"),
    ):
        e_steps(Model(Escaping), 2, monkeypatch)
