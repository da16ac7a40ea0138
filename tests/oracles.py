"""Exact answers for models small enough to enumerate: float64 NumPy, sums over every state.

A model of one datum with S latent states is a table: `log_joint` holds log p(x, z) on axis 0,
its batch axes are data. A guide is a table of probabilities `q` of the same shape, summing to
1 over axis 0. Several latents are one table over their product (`all_codes` lists it). Nothing
here shares code, or an autodiff, with what it judges.
"""

import itertools
import math

import numpy as np


def log_sum_exp(values, axis=0):
    """Log of the sum of exponentials; -inf if all are."""
    values = np.asarray(values, np.float64)
    top = np.max(values, axis=axis, keepdims=True)
    top = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(values - top).sum(axis)) + np.squeeze(top, axis)


def softmax(values, axis=0):
    """Probabilities of unnormalised log probabilities."""
    values = np.asarray(values, np.float64)
    return np.exp(values - np.expand_dims(log_sum_exp(values, axis), axis))


def expect(probs, values):
    """Σ p f over axis 0, where a state of no mass counts nothing, even if f is infinite."""
    probs, values = np.broadcast_arrays(np.asarray(probs, np.float64), values)
    return np.multiply(probs, values, out=np.zeros(probs.shape), where=probs > 0).sum(0)


def log_table(probs):
    """Logs of probabilities, -inf at 0."""
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(probs, np.float64))


def log_prob_of_codes(logits, codes):
    """Log-probabilities of codes (*sample, *batch) under logits (*batch, V)."""
    logits = np.asarray(logits, np.float64)
    log_probs = logits - log_sum_exp(logits, axis=-1)[..., None]
    log_probs = np.broadcast_to(log_probs, (*codes.shape, logits.shape[-1]))
    return np.take_along_axis(log_probs, codes[..., None], -1)[..., 0]


def all_codes(num_codes):
    """Every state of latents with these numbers of codes: (prod(num_codes), len(num_codes))."""
    return np.array(list(itertools.product(*map(range, num_codes))), dtype=int)


def all_draws(probs, num_particles):
    """Every draw of K states, (S**K, K), and its probability (S**K, *batch)."""
    draws = all_codes([len(probs)] * num_particles)
    return draws, np.prod(np.asarray(probs, np.float64)[draws], axis=1)


def log_evidence(log_joint):
    """log p(x) = log Σ_z p(x, z)."""
    return log_sum_exp(log_joint)


def posterior(log_joint):
    """p(z | x)."""
    return softmax(log_joint)


def entropy(q):
    """-Σ q log q."""
    return -expect(q, log_table(q))


def kl(q, p):
    """KL(q ‖ p) of two tables; +inf where q has mass and p has none."""
    with np.errstate(invalid="ignore"):  # log 0 - log 0, which `expect` leaves out
        return expect(q, log_table(q) - log_table(p))


def elbo(log_joint, q):
    """E_q[log p(x, z) - log q(z)]."""
    return expect(q, log_joint) + entropy(q)


def beta_elbo(log_likelihood, log_prior, q, beta):
    """E_q[log p(x | z)] - β KL(q ‖ p(z))."""
    return expect(q, log_likelihood) + beta * (expect(q, log_prior) + entropy(q))


def policy_objective(rewards, q, beta):
    """E_q[R] + β H(q), what a policy search raises."""
    return expect(q, rewards) + beta * entropy(q)


def policy_log_target(log_q, rewards, beta, temperature):
    """log q* ∝ (R + η log q) / T with η = T - β, of all states: what maximises
    E_q[R] + β H(q) - η KL(q ‖ q_θ). A state that q_θ rules out stays ruled out."""
    log_q = np.asarray(log_q, np.float64)
    impossible = np.isneginf(log_q)
    scores = (1 - beta / temperature) * np.where(impossible, 0.0, log_q) + rewards / temperature
    scores = np.where(impossible, -np.inf, scores)
    return scores - log_sum_exp(scores)


def kl_dual(scores, eta, beta, kl_bound):
    """Dual of a policy search within a KL: η ε + T log mean_k exp(scores_k / T), T = η + β."""
    temperature = eta + beta
    scores = np.asarray(scores, np.float64)
    log_mean = log_sum_exp(scores / temperature) - math.log(len(scores))
    return eta * kl_bound + temperature * log_mean


def guide_gradient(rewards, logits, beta=1.0):
    """∇ of E_q[R] + β H(q) to the logits of q: q_j (f_j - E_q f), f = R - β log q.

    With R = log p(x, z) and β = 1 this is the gradient of the ELBO. Logits of -inf get 0.
    """
    q = softmax(logits)
    scores = rewards - beta * log_table(q)
    return np.multiply(q, scores - expect(q, scores), out=np.zeros(q.shape), where=q > 0)


def independent_guide_gradient(rewards, logits, beta=1.0):
    """The same to the logits (num_latents, num_codes) of one datum's independent latents.

    The logit of a state is the sum of its latents', so their gradients add up too.
    """
    num_latents, num_codes = logits.shape
    codes = all_codes([num_codes] * num_latents)
    by_state = guide_gradient(rewards, logits[np.arange(num_latents), codes].sum(1), beta)
    gradient = np.zeros(logits.shape)
    np.add.at(gradient, (np.arange(num_latents), codes), by_state[:, None])
    return gradient


def prior_gradient(prior_logits, q):
    """∇ of the ELBO of one datum to the logits of a categorical prior: q_j - π_j."""
    return q - softmax(prior_logits)


def likelihood_gradient(likelihood_logits, q, x):
    """∇ of the ELBO of a datum of category x to the logits (S, num_categories) of p(x | z)."""
    observed = np.eye(likelihood_logits.shape[1])[x]
    return q[:, None] * (observed - softmax(likelihood_logits, axis=1))


def importance_weighted_bound(log_joint, q, num_particles):
    """E[log (1/K) Σ_k p(x, z_k) / q(z_k)] over all draws of K states of one datum."""
    draws, probs = all_draws(q, num_particles)
    with np.errstate(invalid="ignore"):
        log_weights = (log_joint - log_table(q))[draws]
    return expect(probs, log_sum_exp(log_weights, axis=1) - math.log(num_particles))


def finite_difference(function, point, step=1e-5):
    """Central differences of a scalar function at every entry of `point`."""
    gradient = np.zeros_like(point)
    for index in np.ndindex(point.shape):
        shift = np.zeros_like(point)
        shift[index] = step
        gradient[index] = (function(point + shift) - function(point - shift)) / (2 * step)
    return gradient
