"""What functions of `ops` compute, in float64 by NumPy; and which are held elsewhere, and why."""

import itertools

import numpy as np

__all__ = ["EXEMPT", "NAN_ALONE", "ORACLES"]


def log_softmax(x, axis=-1):
    x = x - np.max(x, axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


def log_sum_exp(x, axis=0):
    top = np.max(x, axis, keepdims=True)
    shift = np.where(np.isinf(top), 0.0, top)
    return np.squeeze(shift + np.log(np.exp(x - shift).sum(axis, keepdims=True)), axis)


def log_sigmoid(x):
    return np.where(x > 0, -np.log1p(np.exp(-np.abs(x))), x - np.log1p(np.exp(-np.abs(x))))


def times_log(p, log):
    """p log, 0 where p's own logarithm is -inf, as 0 log 0 is."""
    return np.where(log == -np.inf, 0.0, p * np.where(log == -np.inf, 0.0, log))


def entropy(log_probs):
    return -times_log(np.exp(log_probs), log_probs)


def kl(log_q, log_p):
    gap = np.where(log_q == -np.inf, 0.0, log_q - log_p)
    return np.where(gap == np.inf, np.inf, np.exp(log_q) * np.where(gap == np.inf, 0.0, gap))


def squared_distances(inputs, table):
    return ((inputs[..., None, :] - table) ** 2).sum(-1)


def mean_entropy(logits, mask=None):
    rows = np.exp(log_softmax(logits)).reshape(-1, logits.shape[-1])
    if mask is not None:
        rows = rows[np.broadcast_to(mask, logits.shape[:-1]).reshape(-1)]
    if not len(rows):
        return np.array(0.0 if mask is not None else np.nan)
    mean = rows.mean(0)
    return -np.where(mean == 0, 0.0, mean * np.log(np.where(mean == 0, 1.0, mean))).sum()


def mean_entropy_of_bits(logits, mask=None):
    """As of the table of all codes, whose log-probabilities are sums of their bits'."""
    signs = np.array(list(itertools.product([-1, 1], repeat=logits.shape[-1])))
    return mean_entropy(log_sigmoid(signs * logits[..., None, :]).sum(-1), mask)


def others(values):
    """Each row's others, along a new first axis."""
    return [np.delete(values, i, 0) for i in range(len(values))]


def signal(log_weights, baseline="geometric"):
    bound, found = log_sum_exp(log_weights), []
    for rest in others(log_weights):
        stand_in = (
            log_sum_exp(rest) - np.log(len(rest)) if baseline != "geometric" else rest.mean(0)
        )
        found.append(bound - np.logaddexp(log_sum_exp(rest), stand_in))
    return np.stack(found)


def effective_sample_size(log_weights, copies=None):
    weights = np.exp(log_softmax(log_weights, 0))
    return 1.0 / ((1.0 if copies is None else copies) * weights**2).sum(0)


def policy_weights(scores, temperature):
    return np.exp(log_softmax(scores / temperature, 0))


def fill_impossible(scores, probs=None):
    possible = scores != -np.inf
    weights = possible * (1.0 if probs is None else probs)
    total = (weights * np.where(possible, scores, 0.0)).sum(0)
    mass = weights.sum(0)
    return np.where(possible, scores, total / np.where(mass > 0, mass, 1.0))


def linear_log_prob(log_probs, value):
    impossible = log_probs == -np.inf
    total = (value * np.where(impossible, 0.0, log_probs)).sum(-1)
    return np.where((impossible & (value > 0)).any(-1), -np.inf, total)


def gumbel_softmax(log_probs, gumbels, temperature):
    return np.exp(log_softmax((log_probs + gumbels) / temperature))


def on_sphere(inputs):
    size = np.sqrt((inputs**2).sum(-1, keepdims=True))
    return np.where(size == 0, 0.0, inputs / np.where(size == 0, 1.0, size))


def code_sums(inputs, codes, num_codes, mask=None):
    rows = inputs.reshape(-1, inputs.shape[-1])
    kept = np.ones(codes.shape, bool) if mask is None else np.broadcast_to(mask, codes.shape)
    flat, kept = codes.reshape(-1), kept.reshape(-1)
    return np.stack([rows[(flat == code) & kept].sum(0) for code in range(num_codes)])


def restarted(table, counts, sums, candidates, min_count):
    dead = counts < min_count
    return (
        np.where(dead[:, None], candidates, table),
        np.where(dead, min_count, counts),
        np.where(dead[:, None], min_count * candidates, sums),
    )


def no_slope(vectors, *paths):
    """The value of vectors whose gradient goes by paths: NaN where a path is not finite."""
    return vectors + sum(0.0 * path for path in paths)


ORACLES = {
    "assignments.assignment_logits": lambda z, e, s: squared_distances(z, e) / (-2.0 * s**2),
    "assignments.mean_entropy": mean_entropy,
    "assignments.mean_entropy_of_bits": mean_entropy_of_bits,
    "assignments.own_entropies": lambda x: entropy(log_softmax(x)).sum(-1),
    "bounds.bernoulli_entropy": lambda x: entropy(log_sigmoid(x)) + entropy(log_sigmoid(-x)),
    "bounds.bernoulli_kl": lambda q, p: (
        kl(log_sigmoid(q), log_sigmoid(p)) + kl(log_sigmoid(-q), log_sigmoid(-p))
    ),
    "bounds.categorical_entropy": lambda x: entropy(log_softmax(x)).sum(-1),
    "bounds.categorical_kl": lambda q, p: kl(log_softmax(q), log_softmax(p)).sum(-1),
    "bounds.importance_weighted_bound": lambda x: log_sum_exp(x) - np.log(len(x)),
    "multisample.antithetic_advantages": lambda x: x - np.roll(x, len(x) // 2, 0),
    "multisample.antithetic_factor": lambda p: np.maximum(p, 1 - p),
    "multisample.log_sum_of_others": lambda x: np.stack([log_sum_exp(o) for o in others(x)]),
    "multisample.multisample_signal": signal,
    "quantizing.code_sums": code_sums,
    "quantizing.restart_codes": restarted,
    "quantizing.squared_distances": squared_distances,
    "relaxing.gumbel_softmax": gumbel_softmax,
    "relaxing.linear_log_prob": linear_log_prob,
    "relaxing.straight_through": lambda lp, hard, t: hard + 0.0 * np.exp(log_softmax(lp / t)),
    "relaxing.with_slope": no_slope,
    "signs.on_sphere": on_sphere,
    "tempering.effective_sample_size": effective_sample_size,
    "weighting.centered_weights": lambda w: w - 1.0 / len(w),
    "weighting.fill_impossible": fill_impossible,
    "weighting.policy_weights": policy_weights,
}
# What a NaN must show in, and what finite values must be finite in; the numbers are held elsewhere.
NAN_ALONE = {
    "clustering.k_means": "test_codebooks, test_quantizing_oracle",
    "codepaths.diveq": "test_codepaths",
    "codepaths.rotation_trick": "test_codepaths",
    "codepaths.straight_through_codes": "test_codepaths",
    "importance.pareto_tail": "test_importance, against ArviZ",
    "quantizing.quantize_levels": "test_quantizing_oracle",
    "quantizing.spread_codes": "test_quantizing",
    "quantizing.update_codebook": "test_quantizing, test_quantizing_oracle",
    "relaxing.conditional_gumbels": "test_relaxing",
    "relaxing.gumbel_rao": "test_relaxing",
    "relaxing.reinmax": "test_relaxing",
    "relaxing.straight_through_gumbel": "test_relaxing; rounding ties what is largest",
    "signs.quantize_signs": "test_quantizing_cases",
    "tempering.solve_kl_temperature": "test_tempering, by SciPy's root",
    "tempering.solve_temperature": "test_tempering, by SciPy's root",
}
# Of these no value can be NaN, or NaN has a meaning that is written down.
EXEMPT = {
    "calibration.random_ranks": "ranks are whole numbers: NaN is refused, see test_calibration_ops",
    "calibration.ranks_of_all": "as random_ranks",
    "multisample.antithetic_draw": "True or False",
    "quantizing.nearest_codes": "whole numbers; the distances show a NaN",
    "quantizing.rows_of_mask": "whole numbers",
    "refusing.refuse_gradient": "the value as it is",
    "sampling.sample_codes": "whole numbers; a NaN gives the last code, whose density is NaN",
    "evolution.Population": "a record",
    "evolution.flip_probs": "of whole numbers and rates that the operators check",
    "sets.keep_best": "NaN ranks with -inf and is kept as it is, see test_states",
    "sets.merge_best": "as keep_best",
    "sets.random_states": "draws whole numbers, see test_states",
    "sets.ranking.top_indices": "places, as keep_best",
    "sets.ranking.without_nan": "what NaN ranks by",
    "sets.states.perturb": "draws",
    "processes": "what processes tell each other: values pass as they are, see test_devices",
    "noise": "shapes of draws, see test_devices",
}
