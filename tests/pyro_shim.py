"""The primitives that `zoo` is written in, for Pyro, and one way to get losses and gradients."""

import copy
from types import SimpleNamespace

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive
from pyro.poutine.util import site_is_subsample
from pyro_programs import as_data, ppl

from pyro_dvae import diagnostics
from pyro_dvae.fit import fit
from pyro_dvae.infer import TruncatedGuide, draws_of
from pyro_dvae.infer.elbo import ParticleELBO
from pyro_dvae.ops import states
from pyro_dvae.programs.codes import enumerate_draws
from pyro_dvae.programs.run import run_particles
from pyro_dvae.programs.sites import Pair
from pyro_dvae.programs.structure.layout import find_layout


def loop_warning():
    """A program that does not take a particle axis is run in a loop, and the user is told."""
    return pytest.warns(UserWarning, match="once per particle")


def stock(name, **options):
    """One of Pyro's own losses."""
    return getattr(pyro.infer, name)(max_plate_nesting=1, **options)


class Case:
    """A program bound to parameters; each call of `run` is one evaluation of a loss."""

    def __init__(self, program, params=None, model=None, guide=None, dtype="float64"):
        self.program, dtype = program, getattr(torch, dtype)
        self.params, self.ppl = ppl(params or program.params, dtype)
        model, guide = model or program.model, guide or program.guide
        self.model = lambda data: model(self.ppl, data)
        self.guide = lambda data: guide(self.ppl, data)
        self.data = as_data(program.data, dtype)

    def layout(self):
        return find_layout(Pair(self.model, self.guide, (self.data,), {}))[0]

    def record(self, elbo, vectorize=True, **options):
        """The particles that a loss would see."""
        pair = Pair(self.model, self.guide, (self.data,), {}, vectorize=vectorize)
        layout, structure = find_layout(pair)
        pair = pair._replace(layout=layout, structure=structure)
        pair = pair._replace(notes=elbo.inspect(pair))
        options = {"sampler": elbo.sampler(pair), "pathwise": elbo.pathwise, **options}
        return run_particles(pair, elbo.num_particles, **options)

    def move(self, grads, size):
        """A step against the gradient."""
        with torch.no_grad():
            for name, value in self.params.items():
                value -= size * torch.as_tensor(grads[name])

    def run(self, elbo, seed=0):
        """Loss, and gradients by name."""
        pyro.set_rng_seed(seed)
        for value in self.params.values():
            value.grad = None
        if isinstance(elbo, ParticleELBO):
            loss = elbo.loss_and_grads(self.model, self.guide, self.data)
        else:  # which look for pyro.param sites before they go backward
            loss = elbo.differentiable_loss(self.model, self.guide, self.data)
            loss.backward()
        grads = {
            name: np.zeros(value.shape) if value.grad is None else value.grad.numpy().copy()
            for name, value in self.params.items()
        }
        return loss.item(), grads

    def forced(self, elbo_class, **options):
        """A loss whose draws are set: `elbo.draws`, states (K, *plates); it keeps their log q."""
        layout = self.layout()
        table = enumerate_draws(self.guide, (self.data,), {}, layout, 2**16)

        class Forced(elbo_class):
            def values(self, pair):
                return {name: place(values, layout, self.draws) for name, values in table.items()}

            def gain(self, particles, *others):
                self.log_draw = float(particles.log_draw.detach().sum())
                return super().gain(particles, *others)

        return Forced(**options)


class Sets:
    """A truncated posterior of a program of `truncated_zoo`."""

    def __init__(self, program, num_states, model=None, params=None, data=None, **options):
        self.params, self.ppl = ppl(params or program.params, torch.float64)
        model, rest = model or program.model, program.rest
        self.cardinalities = program.cardinalities
        self.model = lambda data: model(self.ppl, data)
        self.rest = rest and (lambda data: rest(self.ppl, data))
        self.data = as_data(program.data if data is None else data)
        self.guide = TruncatedGuide(self.model, num_states, rest=self.rest, **options)

    def _data(self, data):
        return self.data if data is None else as_data(data)

    def step(self, elbo, data=None, seed=0):
        """Loss, and gradients by name; the sets evolve."""
        pyro.set_rng_seed(seed)
        for value in self.params.values():
            value.grad = None
        loss = elbo.loss_and_grads(self.model, self.guide, self._data(data))
        return float(loss), {
            name: np.zeros(value.shape) if value.grad is None else value.grad.numpy().copy()
            for name, value in self.params.items()
        }

    def loss(self, elbo, data=None, seed=0):
        """Loss at the sets as they are; of any algorithm."""
        pyro.set_rng_seed(seed)
        return elbo.loss(self.model, self.guide, self._data(data))

    def codes(self):
        """(N, S, H)."""
        return states.unpack(self.guide.words, self.cardinalities).numpy()

    def set_codes(self, codes):
        """Of a guide that has been called."""
        packed = states.pack(torch.as_tensor(codes), self.cardinalities)
        self.guide.load_state_dict({"words": packed})

    def posterior(self, data=None):
        return to_numpy(self.guide.posterior(self._data(data)))

    def sites(self, data=None, seed=0):
        """One draw of the guide: values and log-densities by site."""
        pyro.set_rng_seed(seed)
        trace = poutine.trace(self.guide).get_trace(self._data(data))
        return {
            name: (
                site["value"].detach().numpy(),
                site["fn"].log_prob(site["value"]).detach().numpy(),
            )
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and not site_is_subsample(site)
        }

    def predict(self, num_samples, data=None, seed=0):
        pyro.set_rng_seed(seed)
        draws = Predictive(self.guide, num_samples=num_samples, parallel=True)(self._data(data))
        return {name: value.detach().numpy() for name, value in draws.items()}

    def for_data(self, data, seed=0, proposals=None, **options):
        """The same for other data."""
        pyro.set_rng_seed(seed)
        other = copy.copy(self)
        proposals = proposals and bound(self.ppl, proposals)
        other.data = as_data(data)
        other.guide = self.guide.for_data(other.data, proposals=proposals, **options)
        return other

    def draws_of(self, program, num_draws):
        return draws_of(bound(self.ppl, program), num_draws)


def train(make_model, num_states, elbo, *data, lr=0.02, seed=0, **settings):
    """Fit a `DiscreteVAE` with a truncated guide: losses, sets, and what the model has learnt."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model = make_model()
    guide = TruncatedGuide(model, num_states)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), loss=elbo)
    result = fit(svi, *data, progress=False, **settings)
    return SimpleNamespace(
        losses=result.losses,
        words=guide.words.numpy(),
        params={name: value.numpy() for name, value in result.params.items()},
        probs=torch.sigmoid(model.prior.logits).detach().numpy(),
        variance=model.likelihood.variance.detach().numpy(),
        reconstruct=lambda codes: model.reconstruct(torch.as_tensor(codes)).detach().numpy(),
        posterior=lambda *data: to_numpy(guide.posterior(*map(as_tensor, data))),
    )


def as_tensor(value):
    return torch.as_tensor(value) if isinstance(value, np.ndarray) else value


def bound(primitives, program):
    return lambda data: program(primitives, data)


def to_numpy(posterior):
    values = {name: value.numpy() for name, value in posterior.values.items()}
    return values, posterior.weights.numpy(), posterior.bound.numpy()


def flip_in_turn(population):
    """Children of the best state, one for each latent: the same for the same set."""
    best = population.scores.argmax(0)
    parent = population.codes.gather(
        0, best[None, :, None].expand(1, -1, population.codes.shape[2])
    )
    flips = torch.eye(parent.shape[-1], dtype=parent.dtype)[:, None]
    return torch.bitwise_xor(parent, flips)


def place(values, layout, draws):
    """Rows `draws` (K, *plates) of a state table, each at its own cell of the shared plates."""
    picked = values[torch.as_tensor(draws)]  # (K, *plates, *own batch with singletons, *event)
    for axis, dim in enumerate(layout.dims):
        own = 1 + len(layout.dims) + layout.nesting + dim
        picked = picked.transpose(1 + axis, own)
    return picked.reshape(picked.shape[0], *picked.shape[1 + len(layout.dims) :])


def diagnose(function, case, *args, seed=0, **kwargs):
    """A diagnostic of the programs of a case, at its parameters."""
    pyro.set_rng_seed(seed)
    return function((case.model, case.guide), case.data, *args, **kwargs)


def put_in_store(case):
    """Let the case's parameters be Pyro's own."""
    pyro.clear_param_store()
    case.ppl.param = lambda name, data: pyro.param(name, case.params[name].detach())


def diagnose_sets(program, num_states, name):
    """A diagnostic of a program with a truncated guide, at its first sets."""
    pyro.set_rng_seed(0)
    sets = Sets(program, num_states)
    sets.guide(sets.data)
    return getattr(diagnostics, name)((sets.model, sets.guide), sets.data)
