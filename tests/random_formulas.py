"""What a loss must return on a random program: exactly, or at the draws that it made. NumPy alone.

`exact` sums over all states. `value_at` and `surrogate` are the formulas of each algorithm's paper
at given draws, for data that are the cells of given plates; `mean_over_draws` is the mean of the
score-function gradient over all draws, which must be the exact one if these plates are right.
"""

from typing import NamedTuple

import numpy as np
from random_oracle import evaluate, perturbed
from random_specs import NUM_EVENTS

__all__ = [
    "Pieces",
    "exact",
    "mean_of_pairs",
    "mean_over_draws",
    "pieces",
    "surrogate",
    "truncated",
    "value_at",
]


class Pieces(NamedTuple):
    """Sums of terms, ``[P, R, *shared plates]``, and what no datum owns, ``[P, R]``."""

    likelihood: np.ndarray
    prior: np.ndarray
    q_discrete: np.ndarray
    q_pathwise: np.ndarray
    draw: np.ndarray  # bare
    pair: np.ndarray  # bare, a Bernoulli's cells weighed by max(p, 1 - p)
    entropy: np.ndarray
    shared_likelihood: np.ndarray
    shared_prior: np.ndarray
    shared_q: np.ndarray
    scale: np.ndarray  # of a datum

    @property
    def rate(self):
        return self.q_discrete + self.q_pathwise - self.prior


def _kinds(spec, side, name, term):
    site = spec[name]
    if side == "model":
        return ["prior" if term.is_latent else "likelihood"]
    scored = site.is_discrete or site.kind == "score_normal"
    return ["q_discrete"] if scored else ["q_pathwise"]


def pieces(spec, terms, plates=(), paired=()):
    """Sums of terms by datum, a cell of `plates`; `paired` sites are drawn in pairs."""
    listed = [(side, n, t) for side in ("guide", "model") for n, t in terms[side].items()]
    owned = [entry for entry in listed if set(plates) <= set(entry[2].plates)]
    always = owned
    if spec.asks_draws:  # of which others may come and go
        first = next(site.name for site in spec.of_guide() if _is_scored(spec, site.name))
        always = [entry for entry in owned if entry[1] == first] or owned  # it may not be dreamt
    scale = _weight(spec, [t for _, _, t in always], plates)
    sums = {}
    for side, name, term in listed:
        own = set(plates) <= set(term.plates)
        weight = term.scale / scale if own else term.scale
        (kind,) = _kinds(spec, side, name, term)
        book = (
            kind
            if own
            else {"prior": "shared_prior", "likelihood": "shared_likelihood"}.get(kind, "shared_q")
        )
        _add(sums, book, _summed(spec, weight * term.log_prob, plates if own else ()))
        if side == "guide" and kind == "q_discrete" and own:
            _add(sums, "draw", _summed(spec, term.bare, plates))
            weighed = term.weighed if name in paired else term.bare
            _add(sums, "pair", _summed(spec, weighed, plates))
            if term.entropy is not None:
                _add(sums, "entropy", _summed(spec, weight * term.entropy, plates))
    count, rows = _extent(terms)
    sizes = [
        spec.plate(name).size if name in plates else 1 for name in (p.name for p in spec.plates)
    ]
    zero, nothing = np.zeros((count, rows, *sizes)), np.zeros((count, rows))
    found = {
        name: sums.get(name, nothing if name.startswith("shared") else zero)
        for name in Pieces._fields[:-1]
    }
    found = {
        name: value if name.startswith("shared") else np.broadcast_to(value, zero.shape)
        for name, value in found.items()
    }
    for name in ("shared_likelihood", "shared_prior", "shared_q"):
        found[name] = np.broadcast_to(found[name].reshape(found[name].shape[0], -1), (count, rows))
    return Pieces(**found, scale=np.broadcast_to(scale, (1, 1, *sizes)))


def _add(sums, name, value):
    sums[name] = sums[name] + value if name in sums else value


def _extent(terms):
    shapes = [t.log_prob.shape for side in terms.values() for t in side.values()]
    return max((s[0] for s in shapes), default=1), max((s[1] for s in shapes), default=1)


def _summed(spec, array, plates):
    axes = tuple(2 + i for i, p in enumerate(spec.plates) if p.name not in plates)
    return array.sum(axes, keepdims=True)


def _weight(spec, terms, plates):
    """The weight of a datum: that of all its sites, or else of its subsampled plates."""
    inner = tuple(2 + i for i, p in enumerate(spec.plates) if p.name not in plates)
    if terms:
        first = terms[0].scale
        same = all(t.scale.shape == first.shape and (t.scale == first).all() for t in terms)
        if same and all(first.shape[axis] == 1 for axis in inner):
            return first
    factor = np.prod([spec.plate(name).factor for name in plates])
    return np.full((1, 1, *[1] * len(spec.plates)), factor)


# ---------------------------------------------------------------------------- the exact numbers


def exact(spec, data, draws, theta=None, beta=1.0):
    """Sum over all states: minus the ELBO, and minus the beta-ELBO ``[P]``."""
    if theta is None:
        theta, _ = perturbed(spec)
    found = pieces(spec, evaluate(spec, data, theta, draws))
    log_q = found.draw.reshape(*found.draw.shape[:2], -1).sum(-1)
    probs = np.exp(log_q)

    def mean(beta):
        rate = found.rate.reshape(log_q.shape) * found.scale.reshape(-1)
        likelihood = found.likelihood.reshape(log_q.shape) * found.scale.reshape(-1)
        return -(probs * (likelihood - beta * rate)).sum(1)

    return mean(1.0).real[0], mean(beta), probs[0].real


def mean_over_draws(spec, data, draws, plates, beta=1.0):
    """The mean over all states `draws` of the score-function gradient with these data, ``[P]``."""
    theta, _ = perturbed(spec)
    found = pieces(spec, evaluate(spec, data, theta, draws), plates)
    probs = np.exp(found.draw[:1].real.sum(tuple(range(2, found.draw.ndim))))
    value = _ascended(found, beta, 0.0, None)
    return -_total(value, found, beta, probs)


def _total(value, found, beta, weights=None):
    """What data ascend, ``value [P, R, *plates]``, and what they share: the mean over rows."""
    rows = (found.scale * value).sum(tuple(range(2, value.ndim)))
    rows = rows + found.shared_likelihood + beta * (found.shared_prior - found.shared_q)
    weights = np.full(rows.shape[1], 1 / rows.shape[1]) if weights is None else weights
    return (weights * rows).sum(1)


def fixed(array):
    """Where the parameters are: without gradient."""
    return array[:1].real


def _integrand(found, beta, with_entropy):
    entropy = found.entropy if with_entropy else -fixed(found.q_discrete)
    return found.likelihood + beta * (found.prior - found.q_pathwise + entropy)


def _ascended(found, beta, baseline, with_entropy):
    """Score function, per particle."""
    f = _integrand(found, beta, with_entropy)
    if baseline == "others":
        others = max(1, f.shape[1] - 1)  # none where nothing is drawn
        baseline = (fixed(f).sum(1, keepdims=True) - fixed(f)) / others
    return (fixed(f) - baseline) * found.draw + f


def _with_prediction(found, beta, prediction, with_entropy):
    """The guide's ``prediction [P]`` for a baseline, which learns the scores."""
    prediction = prediction.reshape(-1, *[1] * (found.draw.ndim - 1))
    scores = fixed(_integrand(found, beta, with_entropy))
    ascended = _ascended(found, beta, fixed(prediction), with_entropy)
    return ascended - 0.5 * (scores - prediction) ** 2


# ------------------------------------------------------------------- losses at given draws


def value_at(found, with_entropy):
    """Minus the ELBO of these particles."""
    f = _integrand(found, 1.0, with_entropy)
    return -_total(f, found, 1.0).real[0]


def surrogate(loss, found, beta, with_entropy=False, info=None, memory=None):
    """What a loss descends at its draws, ``[P]``, by the name of the loss."""
    value = {
        "Reinforce_ELBO(learned)": lambda: _with_prediction(found, beta, memory, with_entropy),
        "Reinforce_ELBO": lambda: _ascended(found, beta, "others", with_entropy),
        "Reinforce_ELBO(no_baseline)": lambda: _ascended(found, beta, 0.0, with_entropy),
        "Reinforce_ELBO(moving_average)": lambda: _ascended(
            found, beta, float(memory[0]) / (float(memory[1]) or 1.0), with_entropy
        ),
        "DAPS_ELBO": lambda: _policy_search(found, beta, with_entropy, float(info.temperature)),
        "VIMCO_ELBO": lambda: _multisample(found, beta),
        "WakeSleep_ELBO": lambda: _wake(found, beta),
        "DisARM_ELBO": lambda: _antithetic(found, beta, with_entropy),
    }[loss.replace("(entropy)", "").replace("(sleep)", "")]()
    return -_total(value, found, beta)


def _softmax(scores):
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def _policy_search(found, beta, with_entropy, temperature):
    returns = found.likelihood + beta * (found.prior - found.q_pathwise)
    surprise = found.entropy if with_entropy else -found.q_discrete
    count = returns.shape[1]
    weights = _softmax(fixed(returns + beta * surprise) / temperature)
    policy = (weights - 1 / count) * found.draw * count
    if with_entropy:
        policy = policy + beta / temperature * found.entropy
    return policy + returns


def _log_mean_exp(scores):
    top = fixed(scores).max(1, keepdims=True)
    return np.log(np.exp(scores - top).mean(1, keepdims=True)) + top


def _multisample(found, beta):
    scores = found.likelihood / beta - found.rate
    now, count = fixed(scores), scores.shape[1]
    signal = np.zeros_like(now)
    for k in range(count if count > 1 else 0):
        others = np.delete(now, k, 1)
        replaced = np.concatenate([others, others.mean(1, keepdims=True)], 1)
        signal[:, k] = (_log_mean_exp(now) - _log_mean_exp(replaced))[:, 0]
    return beta * (signal * found.draw * count + _log_mean_exp(scores))


def _wake(found, beta):
    count = found.draw.shape[1]
    f = found.likelihood - beta * found.rate
    weights = _softmax(fixed(f) / beta)
    log_q = found.draw + found.q_pathwise
    returns = found.likelihood + beta * found.prior
    return count * ((weights - 1 / count) * log_q + weights * returns)


def sleep(found, dream, share, beta):
    """What a share of the sleep update changes of `_wake`, ``[P]``."""
    f = found.likelihood - beta * found.rate
    weights = _softmax(fixed(f) / beta)
    waking = ((weights - 1 / f.shape[1]) * (found.draw + found.q_pathwise)).sum(1, keepdims=True)
    dreamt = (dream.q_discrete + dream.q_pathwise) * dream.scale / found.scale
    return -(found.scale * share * (dreamt - waking)).sum(tuple(range(1, f.ndim)))


def _antithetic(found, beta, with_entropy):
    f = _integrand(found, beta, with_entropy)
    gap = fixed(f) - np.roll(fixed(f), f.shape[1] // 2, 1)
    return gap * found.pair + f


def mean_of_pairs(spec, data, draws, plates, paired, beta=1.0):
    """The mean of `_antithetic` over all pairs of states `draws`, ``[P]``."""
    theta, _ = perturbed(spec)
    terms = evaluate(spec, data, theta, draws)
    found = pieces(spec, terms, plates, paired)
    f = _integrand(found, beta, False)
    guide = terms["guide"]
    rest = np.zeros(f.shape[1])
    for name in [n for n in guide if n not in paired and _is_scored(spec, n)]:
        rest = rest + np.real(guide[name].bare[0]).reshape(f.shape[1], -1).sum(1)  # each once
    log_pair = rest[:, None] + rest[None]
    for name in paired:
        log_pair = log_pair + _log_of_pairs(_in_order(spec, name, draws.codes[name]), guide[name])
    probs = np.exp(log_pair)
    gap = fixed(f)[0][:, None] - fixed(f)[0][None]  # [z, z', *plates]
    weights = (probs.reshape(*probs.shape, *[1] * (gap.ndim - 2)) * gap).sum(1)
    value = (weights[None] * found.pair).sum(1)
    total = (found.scale[:, 0] * value).sum(tuple(range(1, value.ndim)))
    return -(total + _total(f, found, beta, probs.sum(1)))


def _is_scored(spec, name):
    return spec[name].is_discrete or spec[name].kind == "score_normal"


def _in_order(spec, name, codes):
    """Codes ``[R, *plates, ...]`` with the plates in the order of the spec."""
    own = spec[name].plates
    places = [1 + own.index(plate.name) for plate in spec.plates if plate.name in own]
    return codes.transpose(0, *places, *range(1 + len(places), codes.ndim))


def _log_of_pairs(codes, term):
    """Log-probability of all pairs ``[R, R]``: of z by u < p, of z' by 1 - u < p."""
    p = term.probs  # [cells]
    codes = codes.reshape(len(codes), -1)
    both = np.maximum(np.where(codes == 1, 2 * p - 1, 1 - 2 * p), 0)
    odd = np.minimum(p, 1 - p)
    same = codes[:, None] == codes[None]
    with np.errstate(divide="ignore"):
        return np.log(np.where(same, both[:, None], odd[None, None])).sum(-1)


# ------------------------------------------------------------------------- truncated posteriors


def truncated(spec, data, theta, draws, plates, beta):
    """Minus the ELBO of the best posterior on all states of each datum, and minus its bound.

    A latent that a mask takes out of the model counts as often as the model draws it.
    """
    terms = evaluate(spec, data, theta, draws)
    rest = {name: term for name, term in terms["guide"].items() if not spec[name].is_discrete}
    found, own = pieces(spec, {**terms, "guide": rest}, plates), np.ones([1] * len(spec.plates))
    f = found.likelihood - beta * found.rate
    for site in spec.of_guide():
        if site.is_discrete:
            term = terms["model"][site.name]
            f = f + beta * _summed(spec, term.bare - term.log_prob, plates)
            sizes = [p.size if p.name in site.plates else 1 for p in spec.plates]
            logs = np.full(sizes, np.log(site.num_values) * (NUM_EVENTS if site.event else 1))
            inner = tuple(i for i, p in enumerate(spec.plates) if p.name not in plates)
            own = own * np.exp(logs.sum(inner, keepdims=True))
    top = fixed(f).max(1, keepdims=True)
    copies = draws.count / own
    bound = beta * (np.log(np.exp((f - top) / beta).sum(1)) - np.log(copies)) + top[:, 0]
    weights = _softmax(fixed(f) / beta)[0]
    likelihood = (weights * fixed(found.likelihood)[0]).sum(0)
    elbo = bound[0].real / beta + (1 - 1 / beta) * likelihood
    shared = found.shared_likelihood[:, 0], (found.shared_prior - found.shared_q)[:, 0]
    scale = found.scale[0, 0]
    value = -(scale * elbo).sum() - (shared[0] + shared[1])[0].real
    ascended = (scale * bound).sum(tuple(range(1, bound.ndim))) + shared[0] + beta * shared[1]
    return value, -ascended
