"""Which diseases explain the symptoms? A noisy-OR network, no VAE, learned without knowing either.

A patient has each of H causes or not. A symptom stays away if nothing brings it about: neither
its leak nor any cause that is there,

    cause_h ~ Bernoulli(prior_h),
    p(symptom_d = 0 | causes) = (1 - leak_d) prod_h (1 - weight_hd)^cause_h.

Only symptoms are observed; priors, leaks and weights are learned. The causes explain each other
away, so that they are not independent given the symptoms, as an encoder would have it: here every
patient has a truncated posterior over sets of causes, and given their probabilities weights and
leaks have a closed form, `NoisyOrDecoder`. Priors follow the gradient, slowly. The patients are
simulated, so the result is compared with the truth, by exact sums over all sets of causes.

    python examples/tools/noisy_or.py --backend numpyro
"""

from typing import Any, NamedTuple

import numpy as np
from backends import Backend, Programs, get_backend
from cli import CommandError, Parser, finish, open_folder, positive, run_main
from pictures import save_weights
from scipy.optimize import linear_sum_assignment

_MOST_CAUSES = 12  # 2 ** H sets of causes are summed over
_CERTAIN = 1e-7  # how far from 1 a weight stays
_APART = 0.2  # by how much of the mean the causes differ at first
_RATE = 0.02  # of the prior's logits: slow, so that causes are told apart before some are given up


class Network(NamedTuple):
    """Probabilities of a noisy-OR network."""

    prior: np.ndarray  # (H,)
    leak: np.ndarray  # (D,)
    weight: np.ndarray  # (H, D)


def make_network(rng: np.random.Generator, num_causes: int, num_symptoms: int) -> Network:
    """Each cause brings about a quarter of the symptoms, some of them nearly always."""
    strength = rng.uniform(0.4, 0.95, (num_causes, num_symptoms))
    order = rng.random((num_causes, num_symptoms)).argsort(1)
    weight = np.where(order < max(1, num_symptoms // 4), strength, 0.0)
    prior = rng.uniform(0.1, 0.3, num_causes)
    return Network(prior, rng.uniform(0.01, 0.05, num_symptoms), weight)


def absence(network: Network, causes: np.ndarray) -> np.ndarray:
    """Log-probability that each symptom stays away ``(N, D)``, given causes ``(N, H)``."""
    return np.log1p(-network.leak) + causes @ np.log1p(-network.weight)


def simulate(rng: np.random.Generator, network: Network, num_patients: int) -> np.ndarray:
    """Symptoms ``(N, D)`` of patients."""
    causes = rng.random((num_patients, len(network.prior))) < network.prior
    log_absent = absence(network, causes.astype(float))
    return (rng.random(log_absent.shape) > np.exp(log_absent)).astype(np.float32)


def make_model(
    backend: Backend, symptoms: np.ndarray, num_causes: int, rng: np.random.Generator
) -> Any:
    """A network to learn: all causes start near the mean of the symptoms."""
    models, size = backend.module("models"), (num_causes, symptoms.shape[1])
    weights = symptoms.mean(0) * (1 + _APART * rng.standard_normal(size))
    weights = weights.clip(0.01, 0.99).astype(np.float32)
    decoder = models.NoisyOrDecoder(backend.array(weights), leak=0.05, learn="closed_form")
    prior = models.BernoulliPrior(num_causes, probability=0.1, learn=True)
    return models.DiscreteVAE(decoder, prior, models.BernoulliLikelihood())


def main(arguments: list[str]) -> None:
    """Simulate patients, learn the network, compare with the truth."""
    parser = Parser(__doc__, out="out/noisy_or")
    parser.add_argument("--causes", type=positive, default=8, help="H")
    parser.add_argument("--symptoms", type=positive, default=24, help="D")
    parser.add_argument("--num-patients", type=positive, default=2000)
    parser.add_argument("--states", type=positive, default=32, help="sets of causes per patient")
    parser.add_argument("--restarts", type=positive, default=4, help="starts, the best is kept")
    parser.add_argument("--steps", type=positive, default=150)
    args = parser.parse_args(arguments)
    if args.causes > _MOST_CAUSES:
        raise CommandError(f"--causes {args.causes}: at most {_MOST_CAUSES}")
    if args.smoke:
        args.causes, args.states, args.steps, args.restarts = 3, 4, 10, 2
    if args.states > 2**args.causes:
        most = f"at most {2**args.causes} with --causes {args.causes}"
        raise CommandError(f"--states {args.states}: {most}")
    backend, out = get_backend(args.backend, "cpu"), open_folder(args.out)
    rng = np.random.default_rng(args.seed)
    truth = make_network(rng, args.causes, args.symptoms)
    symptoms = simulate(rng, truth, args.num_patients)
    backend.seed(args.seed)
    result = train(backend, symptoms, args, rng)
    found = matched(learnt(backend, result.model, args.causes), truth)
    likelihood, best = (log_likelihood(network, symptoms) for network in (found, truth))
    picture = out / "noisy_or.png"
    save_weights(picture, {"true weights": truth.weight, "learned weights": found.weight})
    gap = likelihood - best
    print(
        f"exact log-likelihood per patient {likelihood:.3f} nats, {gap:+.3f} against the truth: "
        f"{picture}"
    )
    summary: dict[str, Any] = {"gap": gap, "log_likelihood": likelihood}
    errors = (np.abs(a - b).mean() for a, b in zip(found, truth, strict=True))
    summary |= {"mean_error": dict(zip(Network._fields, errors, strict=True))}
    summary |= {"seconds": result.seconds, "steps": args.steps, "restarts": args.restarts}
    summary |= {"picture": picture, "backend": backend.name, "seed": args.seed}
    finish(summary, out, show=args.json, name="noisy_or.json")


def train(backend: Backend, symptoms: np.ndarray, args: Any, rng: np.random.Generator) -> Any:
    """Keep the best of several starts."""
    infer, evolution = backend.module("infer"), backend.module("ops.evolution")

    def make() -> Programs:
        model = make_model(backend, symptoms, args.causes, rng)
        parents = evolution.select(min(4, args.states))
        loss = infer.Truncated_ELBO(evolution.chain(parents, evolution.flip(3)))
        return model, infer.TruncatedGuide(model, args.states), loss

    return backend.train_best(
        make,
        symptoms,
        num_restarts=args.restarts,
        learning_rate=_RATE,
        num_steps=args.steps,
        log_every=max(1, args.steps // 20),
    )


def learnt(backend: Backend, model: Any, num_causes: int) -> Network:
    """The probabilities of a model, read off what it says of no cause and of each alone."""
    alone = np.concatenate([np.zeros((1, num_causes)), np.eye(num_causes)]).astype(np.float32)
    on, _, prior = (np.asarray(a, np.float64) for a in backend.conditional(model, alone))
    weight = 1 - (1 - on[1:]) / (1 - on[0])
    return Network(prior[0], on[0], weight.clip(0.0, 1 - _CERTAIN))


def log_likelihood(network: Network, symptoms: np.ndarray) -> float:
    """Exact, per patient, in nats: the sum over all sets of causes."""
    num_causes = len(network.prior)
    causes = (np.arange(2**num_causes)[:, None] >> np.arange(num_causes) & 1).astype(float)
    log_prior = causes @ np.log(network.prior) + (1 - causes) @ np.log1p(-network.prior)
    log_absent = absence(network, causes)
    log_present = np.log(-np.expm1(log_absent))
    scores = log_prior + symptoms @ log_present.T + (1 - symptoms) @ log_absent.T
    return float(np.logaddexp.reduce(scores, axis=1).mean())


def matched(found: Network, truth: Network) -> Network:
    """The causes in the order of the true ones they are nearest to: their names are arbitrary."""
    distances = np.abs(truth.weight[:, None] - found.weight).sum(-1)
    order = linear_sum_assignment(distances)[1]
    return Network(found.prior[order], found.leak, found.weight[order])


if __name__ == "__main__":
    run_main(main)
