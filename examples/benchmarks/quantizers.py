"""Quantisers beside one another, and beside vector-quantize-pytorch if it is installed.

The same small convolutional networks code 32 x 32 colour images as 64 codes of 256 values on an
8 x 8 grid, of width 8 (3 for finite scalars, 8 bits for signs), with Adam at 1e-3 and batches of
32. Each row prints the mean square error of held-out images over the seeds and its standard error,
the codes that they use, the CPU time of a step, and the error of each seed:

    python examples/benchmarks/quantizers.py [--backend pyro|numpyro] [--data FILE.npz]
        [--num-steps 500] [--seeds 0 1 2] [--rows NAME ...] [--turns 200]

With `--turns N` nothing is trained to its end: Pyro's steps and the library's are taken in turn, N
of each, and the medians of their CPU times are printed with their ratio.

The data are `x` of an .npz file, (N, 32, 32, 3) uint8; by default patches of the photographs that
scikit-learn and scikit-image ship.
"""

import argparse
import importlib
import importlib.util
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from small_networks import flax_networks, torch_networks
from timing import side_by_side, summary, table

SIDE, WIDTH, NUM_CODES, GRID, BATCH, RATE = 32, 8, 256, (8, 8), 32, 1e-3
LEVELS = (8, 6, 5)
# As in the library's rows, which start by k-means beside: ours do better from the default start.
RESTARTS: dict[str, float] = {"decay": 0.99, "min_count": 2.0}
SAMPLED = ("sq head", "sq head, daps", "gumbel")  # rows whose codes are drawn
COMMITMENTS = {"lfq": 0.0, "binary spherical": 0.0, "simvq": 0.25}  # as in the library
Outcome = tuple[float, int, float]  # mean square error, codes in use, CPU seconds of a step
Arrays = tuple[np.ndarray, np.ndarray]  # to train with, held out; channels first, in [0, 1]
# Row -> method of the library, or None; how our codebook is made, and options of our guide.
ROWS: dict[str, tuple[str | None, Callable[[ModuleType], Any], dict[str, Any]]] = {
    "averages": ("averages", lambda nets: nets.Codebook(NUM_CODES, WIDTH, decay=0.99), {}),
    "averages, decay .8": (
        "averages, decay .8",
        lambda nets: nets.Codebook(NUM_CODES, WIDTH, decay=0.8),
        {},
    ),
    "averages, rotation": (
        None,
        lambda nets: nets.Codebook(NUM_CODES, WIDTH, decay=0.99),
        {"gradient": "rotation"},
    ),
    "averages, restarts": (
        "averages, restarts",
        lambda nets: nets.Codebook(NUM_CODES, WIDTH, **RESTARTS),
        {},
    ),
    "averages, k-means": (
        "averages, restarts",
        lambda nets: nets.Codebook(NUM_CODES, WIDTH, start="k_means", **RESTARTS),
        {},
    ),
    "averages, cosine": (
        "averages, cosine",
        lambda nets: nets.Codebook(NUM_CODES, WIDTH, cosine=True, start="k_means", **RESTARTS),
        {},
    ),
    "gradient": ("gradient", lambda nets: nets.Codebook(NUM_CODES, WIDTH), {}),
    "gradient, straight": (
        "gradient, straight",
        lambda nets: nets.Codebook(NUM_CODES, WIDTH),
        {"gradient": "straight_through"},
    ),
    "gradient, rotation": (
        "gradient",
        lambda nets: nets.Codebook(NUM_CODES, WIDTH),
        {"gradient": "rotation"},
    ),
    "gradient, diveq": (
        "gradient, diveq",
        lambda nets: nets.Codebook(NUM_CODES, WIDTH, min_count=2.0),
        {"gradient": "diveq"},
    ),
    "simvq": ("simvq", lambda nets: nets.LinearCodebook(NUM_CODES, WIDTH), {}),
    "residual of two": (
        "residual of two",
        lambda nets: nets.ResidualCodebook(
            [nets.Codebook(NUM_CODES, WIDTH, **RESTARTS) for _ in range(2)]
        ),
        {},
    ),
    "residual of two, gradient": (
        None,
        lambda nets: nets.ResidualCodebook([nets.Codebook(NUM_CODES, WIDTH) for _ in range(2)]),
        {},
    ),
    "groups of two": (
        "groups of two",
        lambda nets: nets.GroupedCodebook(
            [nets.Codebook(NUM_CODES, WIDTH // 2, **RESTARTS) for _ in range(2)]
        ),
        {},
    ),
    "fsq": ("fsq", lambda nets: nets.FiniteScalars(LEVELS), {}),
    "lfq": ("lfq", lambda nets: nets.BinaryCodes(WIDTH), {"entropy": 0.1}),
    "binary spherical": (
        "binary spherical",
        lambda nets: nets.BinaryCodes(WIDTH, spherical=True),
        {"entropy": 0.1},
    ),
    "sq head": (None, lambda nets: nets.Codebook(NUM_CODES, WIDTH), {}),
    "sq head, daps": (None, lambda nets: nets.Codebook(NUM_CODES, WIDTH), {}),
    "gumbel": (None, lambda nets: nets.Codebook(NUM_CODES, WIDTH), {}),
}


def load(path: str | None) -> Arrays:
    """Images in [0, 1], seven of eight to train with."""
    if path is None:
        images = photographs()
    else:
        try:
            with np.load(path) as file:
                images = file["x"]
        except FileNotFoundError:
            raise SystemExit(f"error: no such file: {path}") from None
        if images.shape[1:] != (SIDE, SIDE, 3):
            raise SystemExit(
                f"error: --data {path}: `x` must be images of 32 x 32 in colour, (N, 32, 32, 3), "
                f"from 0 to 255; got {images.shape}"
            )
    x = images.astype(np.float32).transpose(0, 3, 1, 2) / 255
    cut = len(x) * 7 // 8
    return x[:cut], x[cut:]


def photographs() -> np.ndarray:
    """Patches of the photographs that come with scikit-learn and scikit-image, shuffled."""
    datasets = importlib.import_module("sklearn.datasets")
    shots = [*datasets.load_sample_images().images]
    try:
        data = importlib.import_module("skimage.data")
        shots += [data.astronaut(), data.coffee(), data.chelsea()]
    except (ImportError, OSError):
        pass  # two photographs have enough patches
    patches = [
        shot[top : top + SIDE, left : left + SIDE]
        for shot in shots
        for top in range(0, shot.shape[0] - SIDE + 1, 24)
        for left in range(0, shot.shape[1] - SIDE + 1, 24)
    ]
    order = np.random.default_rng(0).permutation(len(patches))[:4000]
    return np.stack([patches[k] for k in order])


def batches(x: np.ndarray, num_steps: int, seed: int) -> Any:
    """Rows of each step, the same for all methods."""
    rng = np.random.default_rng(seed)
    for _ in range(num_steps):
        yield x[rng.integers(len(x), size=BATCH)]


def library_step(method: str, seed: int) -> tuple[Any, Any, Any]:
    """A step by the library's quantiser in the loss that its users write, and how to quantise."""
    torch = importlib.import_module("torch")
    torch.manual_seed(seed)
    encoder, decoder = torch_networks(len(LEVELS) if method == "fsq" else WIDTH)
    quantizer = library_quantizer(method)  # after the networks, which thereby start as ours
    parts = torch.nn.ModuleList([encoder, quantizer, decoder])
    optim = torch.optim.Adam(parts.parameters(), RATE)

    def quantize(x: Any) -> tuple[Any, Any, Any]:
        z = encoder(x).flatten(2).transpose(1, 2)
        vectors, codes, *rest = quantizer(z)
        loss = rest[0].sum() if rest else 0.0
        return decoder(vectors.transpose(1, 2).unflatten(2, GRID)), codes, loss

    def step(x: Any) -> None:
        outputs, _, loss = quantize(x)
        optim.zero_grad()
        ((outputs - x).square().mean() + loss).backward()
        optim.step()

    return step, quantize, parts


def run_library(method: str, data: Arrays, num_steps: int, seed: int) -> Outcome:
    """Train by the library, and reconstruct what is held out."""
    torch = importlib.import_module("torch")
    step, quantize, parts = library_step(method, seed)
    start = time.process_time()
    for rows in batches(data[0], num_steps, seed):
        step(torch.as_tensor(rows))
    seconds = (time.process_time() - start) / num_steps
    parts.eval()
    with torch.no_grad():
        x = torch.as_tensor(data[1])
        outputs, codes, _ = quantize(x)
        return (outputs - x).square().mean().item(), len(codes.unique()), seconds


def library_quantizer(method: str) -> Any:
    """As the library's pages show it."""
    library = importlib.import_module("vector_quantize_pytorch")
    averages = {"dim": WIDTH, "codebook_size": NUM_CODES, "decay": 0.99}
    gradient = {**averages, "learnable_codebook": True, "ema_update": False}
    restarts = {"kmeans_init": True, "threshold_ema_dead_code": 2}
    made: dict[str, tuple[str, dict[str, Any]]] = {
        "averages": ("VectorQuantize", averages),
        "averages, decay .8": ("VectorQuantize", averages | {"decay": 0.8}),
        "averages, restarts": ("VectorQuantize", averages | restarts),
        "averages, cosine": ("VectorQuantize", averages | restarts | {"use_cosine_sim": True}),
        "gradient": ("VectorQuantize", gradient),
        "gradient, straight": ("VectorQuantize", gradient | {"rotation_trick": False}),
        "gradient, diveq": (
            "VectorQuantize",
            {**averages, "directional_reparam": True, "threshold_ema_dead_code": 2},
        ),
        "simvq": ("SimVQ", {"dim": WIDTH, "codebook_size": NUM_CODES}),
        "residual of two": ("ResidualVQ", averages | restarts | {"num_quantizers": 2}),
        "groups of two": (
            "VectorQuantize",
            {**averages, **restarts, "heads": 2, "codebook_dim": WIDTH // 2}
            | {"separate_codebook_per_head": True},
        ),
        "fsq": ("FSQ", {"levels": list(LEVELS)}),
        "lfq": ("LFQ", {"codebook_size": 2**WIDTH, "dim": WIDTH}),
        "binary spherical": ("LFQ", {"codebook_size": 2**WIDTH, "dim": WIDTH, "spherical": True}),
    }
    name, options = made[method]
    return getattr(library, name)(**options)


def our_programs(backend: str, row: str, networks: tuple[Any, Any], first: bool) -> tuple:
    """Model, guide and loss of a row."""
    package = f"{backend}_dvae"
    nets, models, guides, infer = (
        importlib.import_module(f"{package}.{room}")
        for room in ("nets", "models", "guides", "infer")
    )
    codebook, options = ROWS[row][1](nets), ROWS[row][2]
    places = {"grid": GRID, "channels_first": first}
    decoder = nets.CodebookDecoder(codebook, networks[1], **places)
    num_latents = codebook.num_blocks * GRID[0] * GRID[1]
    prior = models.UniformPrior(num_latents, codebook.num_codes)
    learn = "closed_form" if row in SAMPLED else False  # for others, the library's loss
    likelihood = models.GaussianLikelihood(variance=0.1, learn=learn)
    model = models.DiscreteVAE(decoder, prior, likelihood)
    if row not in SAMPLED:
        guide = guides.VectorQuantizedGuide(networks[0], codebook, **places, **options)
        return model, guide, infer.VQ_ELBO(commitment=COMMITMENTS.get(row, 1.0))
    if row == "gumbel":
        guide = guides.IndependentGuide(networks[0], **places)
    else:
        guide = guides.IndependentGuide(nets.CodebookEncoder(networks[0], codebook, **places))
    if row == "sq head, daps":
        return model, guide, infer.DAPS_ELBO(4, vectorize_particles=True)
    soft = infer.relax(guide, "straight_through_gumbel", sites=["z"], temperature=0.5)
    hard = infer.relax(model, "straight_through_gumbel", sites=["z"])
    return hard, soft, infer.Reinforce_ELBO(1)


def encoder_width(row: str) -> int:
    """Channels that an encoder ends in."""
    return {"fsq": len(LEVELS), "gumbel": NUM_CODES}.get(row, WIDTH)


def pyro_svi(row: str, seed: int) -> Any:
    """Our programs, loss and optimiser of a row."""
    pyro, fit = importlib.import_module("pyro"), importlib.import_module("pyro_dvae.fit")
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    networks = torch_networks(encoder_width(row), len(LEVELS) if row == "fsq" else WIDTH)
    model, guide, loss = our_programs("pyro", row, networks, True)
    return pyro.infer.SVI(model, guide, fit.adamw(RATE), loss)


def run_pyro(row: str, data: Arrays, num_steps: int, seed: int) -> Outcome:
    """Train by SVI, and reconstruct what is held out from its likeliest codes."""
    torch = importlib.import_module("torch")
    svi = pyro_svi(row, seed)
    start = time.process_time()
    for rows in batches(data[0], num_steps, seed):
        svi.step(torch.as_tensor(rows))
    seconds = (time.process_time() - start) / num_steps
    model, guide = (getattr(program, "program", program) for program in (svi.model, svi.guide))
    with torch.no_grad():
        x = torch.as_tensor(data[1])
        codes = guide.eval().posterior(x).base_dist.logits.argmax(-1)
        outputs = model.eval().reconstruct(codes)
        return (outputs - x).square().mean().item(), len(codes.unique()), seconds


def run_numpyro(row: str, data: Arrays, num_steps: int, seed: int) -> Outcome:
    """The same in JAX, with channels last; the first step, which compiles, is not timed."""
    jax, numpyro = importlib.import_module("jax"), importlib.import_module("numpyro")
    jnp, infer = jax.numpy, importlib.import_module("numpyro_dvae.infer")
    networks = flax_networks(encoder_width(row), len(LEVELS) if row == "fsq" else WIDTH)
    model, guide, loss = our_programs("numpyro", row, networks, False)
    train, held_out = (jnp.asarray(x.transpose(0, 2, 3, 1)) for x in data)
    svi = infer.SVI(model, guide, numpyro.optim.Adam(RATE), loss)
    state = jax.jit(svi.init)(jax.random.key(seed), train[:BATCH])
    update, start = jax.jit(svi.update), 0.0
    rng = np.random.default_rng(seed)
    for step in range(num_steps):
        state, value = update(state, train[rng.integers(len(train), size=BATCH)])
        if step == 0:
            value.block_until_ready()
            start = time.process_time()
    value.block_until_ready()
    seconds = (time.process_time() - start) / max(num_steps - 1, 1)
    values = {**svi.get_params(state), **(state.mutable_state or {})}
    model, guide = (getattr(program, "program", program) for program in (model, guide))

    def reconstruct(x: Any) -> Any:
        codes = guide.posterior(x).base_dist.logits.argmax(-1)
        return codes, model.reconstruct(codes)

    known = numpyro.handlers.substitute(reconstruct, data=values)
    codes, outputs = jax.jit(known)(held_out)
    return float(jnp.square(outputs - held_out).mean()), len(jnp.unique(codes)), seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", choices=("pyro", "numpyro"), default="pyro")
    parser.add_argument("--data", help=".npz file with images `x`, (N, 32, 32, 3)")
    parser.add_argument("--num-steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--turns", type=int, help="time so many steps of each, in turn")
    options = parser.parse_args()
    data, ours = load(options.data), {"pyro": run_pyro, "numpyro": run_numpyro}[options.backend]
    beside = importlib.util.find_spec("vector_quantize_pytorch") is not None
    print(f"{len(data[0])} images to train with, {len(data[1])} held out", flush=True)
    if options.turns is not None:
        known = [(row, ROWS[row][0]) for row in options.rows if beside]
        rows = [take_turns(r, method, data, options.turns) for r, method in known if method]
        print(table(rows, "the library's"))
        return
    for row in options.rows:
        show(row, options.backend, ours, row, data, options)
        if beside and ROWS[row][0] is not None:
            show(row, "library", run_library, ROWS[row][0], data, options)


def take_turns(row: str, method: str, data: Arrays, turns: int) -> dict:
    """Time steps of ours and of the library one after the other, on the same batch."""
    x = importlib.import_module("torch").as_tensor(data[0][:BATCH])
    svi, theirs = pyro_svi(row, 0), library_step(method, 0)[0]
    steps = {"library": lambda: theirs(x), row: lambda: svi.step(x)}
    seconds = side_by_side(steps, rounds=turns, repeats=1)
    return summary(seconds, "library")[1]


def show(
    row: str,
    whose: str,
    run: Callable[..., Outcome],
    method: str,
    data: Arrays,
    options: argparse.Namespace,
) -> None:
    """Run a row for all seeds, and print it."""
    found = [run(method, data, options.num_steps, seed) for seed in options.seeds]
    errors, used, seconds = zip(*found, strict=True)
    spread = np.std(errors, ddof=1) / len(errors) ** 0.5 if len(errors) > 1 else np.nan
    print(
        f"{row:26} {whose:8} mse {np.mean(errors):.5f} +- {spread:.5f}  codes {np.mean(used):5.0f}"
        f"  {1000 * np.mean(seconds):6.1f} ms  ({' '.join(f'{error:.5f}' for error in errors)})",
        flush=True,
    )


if __name__ == "__main__":
    main()
