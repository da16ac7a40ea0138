"""DisARM: unbiased by summing over every antithetic pair, and its draws are such pairs."""

import itertools

import numpy as np
import pytest
from zoo import NOISE, PROGRAMS, Program, gradient
from zoo_binary import BITS, CHAIN, X, assert_same, bits_terms, mean_gradient, sigmoid

BY_NAME = {program.name: program for program in PROGRAMS}
VAE = BY_NAME["vae"]


def paired(p, first, second):
    """Probability of an antithetic pair of Bernoulli draws."""
    if first != second:
        return min(p, 1 - p)
    return max(2 * p - 1, 0.0) if first else max(1 - 2 * p, 0.0)


def independent(p, first, second):
    return (p if first else 1 - p) * (p if second else 1 - p)


def bits_pair(couple, first, second):
    """Probability of two states of one datum, each a + 2 b."""
    logits = X * BITS.params["encoder"][0] + BITS.params["encoder"][1]
    latents = zip(sigmoid(logits), (first % 2, first // 2), (second % 2, second // 2), strict=True)
    return np.prod([couple(p, *pair) for p, *pair in latents])


def chain_pair(couple, first, second):
    gate, loc = CHAIN.params["gate"], CHAIN.params["loc"]
    c = loc[0] * X + np.exp(loc[1]) * NOISE
    probability = couple(sigmoid(gate[0] + gate[1] * X), first % 2, second % 2)
    for state in (first, second):
        p = sigmoid(gate[2] + gate[3] * (state % 2) + gate[4] * c)
        probability *= p if state // 2 else 1 - p
    return probability


def nested_pair(couple, first, second):
    p = sigmoid(BY_NAME["nested"].params["logits"])
    return np.prod([couple(p, first >> i & 1, second >> i & 1) for i in (0, 1)])


def pairs_of(pair_probability, couple=paired, num_pairs=1, num_data=1):
    """All draws of 2 `num_pairs` particles, and their probability."""
    for states in itertools.product(range(4), repeat=2 * num_pairs * num_data):
        draws = np.array(states).reshape(2, num_pairs, num_data)
        cells = draws.reshape(2, -1).T
        probability = np.prod([pair_probability(couple, *cell) for cell in cells])
        if probability:
            yield draws.reshape(-1, num_data), probability


def disarm(shim, case, draws, num_particles=2, **options):
    elbo_class = shim.module("infer.disarm").DisARM_ELBO
    return mean_gradient(
        case, case.forced(elbo_class, num_particles=num_particles, **options), draws
    )


@pytest.mark.parametrize("closed_form_entropy", [False, True])
@pytest.mark.parametrize(
    ("program", "pair"), [(BITS, bits_pair), (CHAIN, chain_pair)], ids=["bits", "chain"]
)
def test_disarm_is_unbiased(shim, program, pair, closed_form_entropy):
    loss, grads = disarm(
        shim, shim.Case(program), pairs_of(pair), closed_form_entropy=closed_form_entropy
    )
    np.testing.assert_allclose(loss, program.loss(program.params), rtol=1e-12)
    assert_same(grads, gradient(program.loss, program.params))


def test_disarm_is_unbiased_with_two_pairs(shim):
    _, grads = disarm(shim, shim.Case(BITS), pairs_of(bits_pair, num_pairs=2), 4)
    assert_same(grads, gradient(BITS.loss, BITS.params))


def test_disarm_is_unbiased_under_nested_plates_and_masks(shim):
    program = BY_NAME["nested"]
    _, grads = disarm(shim, shim.Case(program), pairs_of(nested_pair, num_data=2))
    assert_same(grads, gradient(program.loss, program.params))


@pytest.mark.parametrize(
    ("program", "credited"), [(CHAIN, True), (BY_NAME["nested"], True), (BITS, False)]
)
def test_the_sums_above_are_of_draws_with_credit(shim, program, credited):
    """Not where each draw influences all of its datum, as both bits do."""
    seen = []

    class Seen(shim.module("infer.disarm").DisARM_ELBO):
        def gain(self, particles, *others):
            seen.append("credit" in particles.extras)
            return super().gain(particles, *others)

    shim.Case(program).run(Seen(2))
    assert seen[-1] is credited


def test_independent_pairs_are_caught(shim):
    """Negative control: DisARM's coefficients belong to antithetic draws alone."""
    _, grads = disarm(shim, shim.Case(BITS), pairs_of(bits_pair, independent))
    exact = gradient(BITS.loss, BITS.params)
    assert_same({"weight": grads["weight"]}, {"weight": exact["weight"]})
    with pytest.raises(AssertionError, match="encoder"):
        assert_same(grads, exact)


def test_each_pair_gets_the_published_coefficient(shim):
    case, params = shim.Case(BITS), BITS.params
    elbo_class = shim.module("infer.disarm").DisARM_ELBO
    elbo = case.forced(elbo_class, num_particles=2, closed_form_entropy=False)
    log_q, log_p = bits_terms(params, X)
    logits = X * params["encoder"][0] + params["encoder"][1]
    for first, second in ((0, 3), (1, 2), (1, 3)):
        elbo.draws = np.array([[first], [second]])
        grads = case.run(elbo)[1]["encoder"]
        gap = (log_p[first] - log_q[first]) - (log_p[second] - log_q[second])
        latents = np.array([(first % 2, first // 2), (second % 2, second // 2)])
        sign = np.where(latents[1], -1.0, 1.0) * (latents[0] != latents[1])
        published = 0.5 * gap * sign * sigmoid(np.abs(logits))
        np.testing.assert_allclose(grads, -np.stack([X * published, published]), rtol=1e-9)


def many_guide(ppl, data):
    """2000 data: two roots in one site, and a site that depends on them."""
    with ppl.plate("data", 2000):
        z = ppl.sample("z", ppl.dist.Bernoulli(probs=ppl.param("probs", data)).to_event(1))
        ppl.sample("b", ppl.dist.Bernoulli(logits=2.0 * z[..., 0] - 1.0))


MANY = Program(
    "many", many_guide, many_guide, None, {"probs": np.array([0.3, 0.8])}, {}, ("data",), 8
)


@pytest.mark.parametrize("vectorize", [True, False])
def test_draws_come_in_antithetic_pairs(shim, vectorize):
    """Roots are mirrored, dependent sites are not; both have the guide's margins."""
    case, elbo = shim.Case(MANY), shim.module("infer.disarm").DisARM_ELBO(4)
    reads = {"codes": shim.module("programs.record").read_codes}
    codes = np.asarray(case.record(elbo, vectorize=vectorize, reads=reads).extras["codes"])
    first, second, b = codes[..., 0], codes[..., 1], codes[..., 2]
    assert codes.shape == (4, 2000, 3)
    assert not (first[:2] & first[2:]).any()
    assert (second[:2] | second[2:]).all()
    centred = b - sigmoid(2.0 * first - 1.0)
    for zero_mean in (first - 0.3, second - 0.8, centred, centred[:2] * centred[2:]):
        assert_zero_mean(zero_mean)
    for apart in ((first - 0.3)[0] * (first - 0.3)[1], (first - 0.3) * (second - 0.8)):
        assert_zero_mean(apart)  # pairs and latents are independent
    with pytest.raises(AssertionError):
        assert_zero_mean((first - 0.3)[:2] * (first - 0.3)[2:])


def assert_zero_mean(values):
    """Over axis -1, independent data, within 5 standard errors."""
    deviation = np.abs(values.mean(-1)) / (values.std(-1) / np.sqrt(values.shape[-1]))
    assert deviation.max() < 5


def test_a_site_that_is_not_binary_is_named(shim):
    case = shim.Case(VAE)
    with pytest.raises(ValueError, match=r"site 'z' .* is Categorical.*Reinforce_ELBO"):
        case.run(shim.module("infer.disarm").DisARM_ELBO())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 3}, "`num_particles` must be even .* got 3"),
        ({"num_particles": 0}, "`num_particles` must be .* at least 2"),
    ],
)
def test_bad_settings(shim, options, message):
    with pytest.raises(ValueError, match=message):
        shim.module("infer.disarm").DisARM_ELBO(**options)
