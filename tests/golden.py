"""Losses and parameters of a few steps, of every loss, to the last bit: before and after a change.

    python tests/golden.py --beside REVISION      # this tree against a revision of git
    python tests/golden.py pyro out.json          # one package's numbers, into a file
    python tests/golden.py --compare a.json b.json

A change that moves code and means to leave every number alone shows it by the first. Numbers are
written as hexadecimal floats. They are compared on one machine, in one environment: another
processor or library rounds otherwise. Only what users can import is used, so that the file runs on
either side of a change.
"""

import argparse
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("JAX_ENABLE_X64", "1")
TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

import numpy as np  # noqa: E402
import truncated_zoo  # noqa: E402
import zoo  # noqa: E402
import zoo_binary  # noqa: E402

STEPS, RATE = 3, 0.05
PROGRAMS = {program.name: program for program in zoo.PROGRAMS}
BINARY = {"bits": zoo_binary.BITS, "chain": zoo_binary.CHAIN}
SETS = {
    program.name: program
    for program in (
        truncated_zoo.CAUSES_PROGRAM,
        truncated_zoo.SITES_PROGRAM,
        truncated_zoo.NESTED_PROGRAM,
        truncated_zoo.REST_PROGRAM,
    )
}
BETAS = {"": {}, "beta": {"beta": 0.3}, "rate": {"target_rate": 2.0}}
PAIR = {name: BETAS[name] for name in ("", "beta")}
LOOP = {"loop": {"vectorize_particles": False}}


def critic_guide(ppl, data):
    """The VAE's guide with a baseline of its own."""
    with ppl.plate("data", len(data["x"])):
        ppl.deterministic("baseline", data["x"] @ ppl.param("critic", data))
        zoo.sample_codes(ppl, data)


CRITIC = zoo.PROGRAMS[0]._replace(
    name="critic", guide=critic_guide, params={**zoo.PROGRAMS[0].params, "critic": zoo.draw(3)}
)


def replace_x(made, args, kwargs):
    """The data that the model made, for the sleep update."""
    return ({**args[0], **made},), kwargs


def cases(infer, baselines):
    """Name -> (program, loss), for each program and loss that go together."""
    losses = {
        "daps": lambda **o: infer.DAPS_ELBO(4, **o),
        "daps_kl": lambda **o: infer.DAPS_ELBO(4, kl_bound=0.3, per_datum=True, **o),
        "daps_iw": lambda **o: infer.DAPS_ELBO(4, importance_weighted=True, **o),
        "daps_entropy": lambda **o: infer.DAPS_ELBO(4, closed_form_entropy=True, **o),
        "reinforce": lambda **o: infer.Reinforce_ELBO(4, **o),
        "reinforce_drawn": lambda **o: infer.Reinforce_ELBO(4, closed_form_entropy=False, **o),
        "reinforce_one": lambda **o: infer.Reinforce_ELBO(1, **o),
        "vimco": lambda **o: infer.VIMCO_ELBO(4, **o),
        "vimco_mean": lambda **o: infer.VIMCO_ELBO(4, baseline="arithmetic", **o),
        "wake": lambda **o: infer.WakeSleep_ELBO(4, **o),
        "exact": lambda **o: infer.Exact_ELBO(**o),
    }
    sleep = {"sleep": 0.5, "replace_data": replace_x}
    for (name, make), program in itertools.product(losses.items(), PROGRAMS.values()):
        settings = BETAS | LOOP if program.name == "vae" else PAIR
        for setting, options in settings.items():
            yield f"{name}/{program.name}/{setting}", program, lambda m=make, o=options: m(**o)
    for program, (setting, options) in itertools.product(BINARY.values(), (BETAS | LOOP).items()):
        make = lambda o=options: infer.DisARM_ELBO(4, **o)  # noqa: E731
        yield f"disarm/{program.name}/{setting}", program, make
    for setting, options in BETAS.items():
        make = lambda o=options: infer.WakeSleep_ELBO(4, **sleep, **o)  # noqa: E731
        yield f"sleep/vae/{setting}", PROGRAMS["vae"], make
        make = lambda o=options: infer.Reinforce_ELBO(  # noqa: E731
            4, baseline=baselines.learned(), **o
        )
        yield f"learned/critic/{setting}", CRITIC, make
        for program in SETS.values():
            make = lambda o=options: infer.Truncated_ELBO(generations=2, **o)  # noqa: E731
            yield f"truncated/{program.name}/{setting}", program, make


def vq_cases(infer, nets, models, guides, table):
    """Name -> (model, guide, loss) of vector quantisation, and of closed forms."""
    likelihood = models.GaussianLikelihood
    for kind, (setting, options) in itertools.product(
        ("gradient", "moving", "scalar"), BETAS.items()
    ):
        if kind == "scalar":
            codebook = nets.FiniteScalars((3, 2, 4))
        else:
            codebook = nets.Codebook(5, 3, decay=0.5 if kind == "moving" else None, table=table)
        decoder = nets.CodebookDecoder(codebook, nets.MLPDecoder(6, None, (3, 2), hidden=()))
        prior = models.UniformPrior(2, codebook.num_codes)
        model = models.DiscreteVAE(decoder, prior, likelihood(variance=1.0, learn=False))
        guide = guides.VectorQuantizedGuide(nets.MLPEncoder((3, 2), 2, 3, hidden=()), codebook)
        yield f"vq/{kind}/{setting}", model, guide, infer.VQ_ELBO(**options)
    model = models.DiscreteVAE(
        nets.MLPDecoder(4, None, (3, 2), hidden=()),
        models.BernoulliPrior(4, learn="closed_form"),
        likelihood(variance=1.0, learn="closed_form"),
    )
    yield "closed_form/vae/", model, infer.TruncatedGuide(model, 5), infer.Truncated_ELBO()


DATA = np.random.default_rng(0).normal(size=(12, 3, 2)).astype(np.float32)
TABLE = 0.3 * np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)


def exact(value):
    """Numbers to the last bit."""
    return [float(x).hex() for x in np.ravel(np.asarray(value))]


def exact_info(info):
    return {name: exact(value) for name, value in info._asdict().items()}


def run_pyro():
    """The numbers of pyro_dvae."""
    import pyro
    import torch
    from pyro_programs import as_data, ppl

    from pyro_dvae import guides, infer, models, nets
    from pyro_dvae.ops import baselines

    def steps(model, guide, loss, data, params):
        pyro.set_rng_seed(0)
        loss.loss(model, guide, data)  # the first call reads the structure, with draws of its own
        for step in range(STEPS):
            pyro.set_rng_seed(step)
            value = loss.loss_and_grads(model, guide, data)
            found = {"loss": exact(value.detach()), "info": exact_info(loss.info)}
            with torch.no_grad():
                for name, leaf in params().items():
                    gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
                    found[name] = exact(gradient)
                    leaf -= RATE * gradient
                    leaf.grad = None
            yield found

    for name, program, make in cases(infer, baselines):
        tensors, primitives = ppl(program.params, torch.float64)

        def bound(function, primitives=primitives):
            return function and functools.partial(function, primitives)

        model = bound(program.model)
        if isinstance(program, truncated_zoo.SetProgram):
            pyro.set_rng_seed(0)
            guide = infer.TruncatedGuide(model, 2, rest=bound(program.rest))
        else:
            guide = bound(program.guide)
        data = as_data(program.data)
        yield name, list(steps(model, guide, make(), data, lambda t=tensors: t))
    pyro.set_rng_seed(0)
    made = vq_cases(infer, nets, models, guides, torch.tensor(TABLE))
    for name, model, guide, loss in made:
        pyro.clear_param_store()

        def params(model=model, guide=guide):
            both = itertools.chain(model.named_parameters("model"), guide.named_parameters("guide"))
            return dict(both)

        yield name, list(steps(model, guide, loss, torch.tensor(DATA), params))


def run_numpyro():
    """The numbers of numpyro_dvae."""
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro_programs import as_data, ppl

    from numpyro_dvae import guides, infer, models, nets
    from numpyro_dvae.infer.svi import loss_info
    from numpyro_dvae.ops import baselines

    def steps(model, guide, loss, data):
        svi = infer.SVI(model, guide, numpyro.optim.SGD(RATE), loss)
        state, update = jax.jit(svi.init)(jax.random.key(0), data), jax.jit(svi.update)
        for _ in range(STEPS):
            state, value = update(state, data)
            info = loss_info(state)
            found = {"loss": exact(value), "info": exact_info(info)}
            yield found | {n: exact(v) for n, v in flat(svi.get_params(state)).items()}

    def flat(params):
        leaves = jax.tree_util.tree_flatten_with_path(params)[0]
        return {jax.tree_util.keystr(path): value for path, value in leaves}

    for name, program, make in cases(infer, baselines):
        primitives = SimpleNamespace(**vars(ppl("float64")))
        start = {key: jnp.asarray(value, "float64") for key, value in program.params.items()}
        primitives.param = lambda name, data, start=start: numpyro.param(name, start[name])

        def bound(function, primitives=primitives):
            return function and functools.partial(function, primitives)

        model = bound(program.model)
        if isinstance(program, truncated_zoo.SetProgram):
            guide = infer.TruncatedGuide(model, 2, rest=bound(program.rest))
        else:
            guide = bound(program.guide)
        yield name, list(steps(model, guide, make(), as_data(program.data)))
    made = vq_cases(infer, nets, models, guides, jnp.asarray(TABLE))
    for name, model, guide, loss in made:
        yield name, list(steps(model, guide, loss, jnp.asarray(DATA)))


def compare(before, after):
    """Print what differs, how many units in the last place; whether nothing does."""
    same = True
    for name in sorted(before.keys() | after.keys()):
        pairs = [list(leaves(tree.get(name, []))) for tree in (before, after)]
        if pairs[0] == pairs[1]:
            continue
        same = False
        paths = dict(pairs[0]).keys() ^ dict(pairs[1]).keys()
        print(f"{name}: {'other entries: ' + ', '.join(sorted(paths)) if paths else ''}")
        for path, old in pairs[0]:
            new = dict(pairs[1]).get(path, old)
            if new != old:
                old, new = (np.array([float.fromhex(x) for x in v]) for v in (old, new))
                print(f"    {path}: {np.max(np.abs(new - old) / np.spacing(np.abs(old))):.0f} ulp")
    print(f"{len(before)} cases, {'equal to the last bit' if same else 'not equal'}")
    return same


def leaves(tree, path=""):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{path}/{key}")
    elif tree and isinstance(tree[0], str):
        yield path, tree
    else:
        for place, value in enumerate(tree):
            yield from leaves(value, f"{path}/{place}")


def beside(revision):
    """Run both packages here and at a revision, each in a process of its own, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        old, verdicts = Path(folder) / "old", []
        subprocess.run(["git", "worktree", "add", "--detach", str(old), revision], check=True)
        try:
            for helper in ("golden.py", "pyro_programs.py"):
                shutil.copy(TESTS / helper, old / "tests" / helper)
            for package in ("pyro", "numpyro"):
                results = []
                for tests in (old / "tests", TESTS):
                    out = Path(folder) / f"{package}-{len(results)}.json"
                    command = [sys.executable, str(tests / "golden.py"), package, str(out)]
                    subprocess.run(command, check=True, cwd=tests.parent)
                    results.append(json.loads(out.read_text()))
                print(f"{package}_dvae")
                verdicts.append(compare(*results))
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(old)], check=True)
    return all(verdicts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--beside", metavar="REVISION")
    parser.add_argument("--compare", nargs=2, type=Path)
    parser.add_argument("package", nargs="?", choices=["pyro", "numpyro"])
    parser.add_argument("out", nargs="?", type=Path)
    args = parser.parse_args()
    if args.beside:
        sys.exit(not beside(args.beside))
    if args.compare:
        sys.exit(not compare(*(json.loads(path.read_text()) for path in args.compare)))
    run = {"pyro": run_pyro, "numpyro": run_numpyro}[args.package]
    args.out.write_text(json.dumps(dict(run())))


if __name__ == "__main__":
    main()
