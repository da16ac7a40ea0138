"""VIMCO, DisARM and wake-sleep: unbiased by summing over every draw, else the formula by hand."""

import itertools

import numpy as np
import pytest
from zoo import (
    NOISE,
    PROGRAMS,
    VAE_DATA,
    Program,
    bernoulli,
    expected,
    expected_bound,
    gradient,
    log_softmax,
    normal,
    sample_codes,
    vae_terms,
)

BY_NAME = {program.name: program for program in PROGRAMS}
VAE = BY_NAME["vae"]
ONE = VAE._replace(data={"x": VAE_DATA["x"][:1]})


def all_draws(program, num_particles, num_data):
    shape = (num_particles, num_data) if program.plates else (num_particles,)
    for states in itertools.product(range(program.states), repeat=int(np.prod(shape))):
        yield np.array(states).reshape(shape), None


def mean_gradient(case, elbo, weighted_draws):
    """Sum over draws of their probability (the guide's, if None) times loss and gradient."""
    mean_loss, mean, mass = 0.0, {}, 0.0
    for draws, probability in weighted_draws:
        elbo.draws = draws
        loss, grads = case.run(elbo)
        probability = np.exp(elbo.log_draw) if probability is None else probability
        mass, mean_loss = mass + probability, mean_loss + probability * loss
        mean = {name: mean.get(name, 0.0) + probability * grad for name, grad in grads.items()}
    np.testing.assert_allclose(mass, 1.0, rtol=1e-12)
    return mean_loss, mean


def assert_same(found, expected, rtol=1e-10, atol=1e-10):
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol, atol, err_msg=name)


# ------------------------------------------------------------------------------------- VIMCO


def vimco(shim, case, num_particles, num_data=2, **options):
    elbo_class = shim.module("infer.vimco").VIMCO_ELBO
    elbo = case.forced(elbo_class, num_particles=num_particles, **options)
    return mean_gradient(case, elbo, all_draws(case.program, num_particles, num_data))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixed", "nested"])
def test_vimco_is_unbiased_for_two_data(shim, name):
    program = BY_NAME[name]
    loss, grads = vimco(shim, shim.Case(program), 2)
    np.testing.assert_allclose(loss, program.loss(program.params), rtol=1e-12)  # minus the ELBO
    bound = expected_bound(2)
    assert_same(grads, gradient(lambda p: program.loss(p, bound), program.params))


def test_vimco_is_unbiased_with_dependent_and_continuous_latents(shim):
    loss, grads = vimco(shim, shim.Case(CHAIN), 3, 1)
    np.testing.assert_allclose(loss, CHAIN.loss(CHAIN.params), rtol=1e-12)
    bound = expected_bound(3)
    assert_same(grads, gradient(lambda p: CHAIN.loss(p, bound), CHAIN.params))


@pytest.mark.parametrize("baseline", ["geometric", "arithmetic"])
def test_vimco_is_unbiased_with_a_global_latent(shim, baseline):
    program, bound = BY_NAME["global"], expected_bound(3)
    _, grads = vimco(shim, shim.Case(program), 3, baseline=baseline)
    assert_same(grads, gradient(lambda p: program.loss(p, bound), program.params))


def tempered_loss(beta, bound):
    """Minus beta log mean exp(f / beta) of one datum's draws, f its beta-ELBO."""

    def loss(p):
        log_q, log_prior, log_likelihood = vae_terms(p, VAE_DATA["x"][0])
        return -beta * bound(log_q, log_prior + log_likelihood / beta)

    return loss


@pytest.mark.parametrize("baseline", ["geometric", "arithmetic"])
@pytest.mark.parametrize("beta", [1.0, 0.6])
def test_vimco_is_unbiased_at_any_beta(shim, baseline, beta):
    _, grads = vimco(shim, shim.Case(ONE), 3, 1, baseline=baseline, beta=beta)
    assert_same(grads, gradient(tempered_loss(beta, expected_bound(3)), VAE.params))


def test_a_baseline_that_sees_its_own_particle_is_caught(shim, monkeypatch):
    """Negative control: the mean of all weights in place of the others'."""
    module = shim.module("infer.vimco")

    def biased(log_weights, baseline):
        signal = shim.module("ops.multisample").multisample_signal(log_weights, baseline)
        return signal - signal.mean(0)

    monkeypatch.setattr(module, "multisample_signal", biased)
    elbo_class = type("Biased", (module.VIMCO_ELBO,), {})  # compiled apart from the right one
    case = shim.Case(ONE)
    elbo = case.forced(elbo_class, num_particles=2)
    _, grads = mean_gradient(case, elbo, all_draws(ONE, 2, 1))
    exact = gradient(tempered_loss(1.0, expected_bound(2)), VAE.params)
    np.testing.assert_allclose(grads["weight"], exact["weight"], rtol=1e-10)
    with pytest.raises(AssertionError, match="encoder"):
        assert_same(grads, exact)


# ------------------------------------------------------------------------------------ DisARM


def bits_model(ppl, data):
    prior, weight = ppl.param("prior", data), ppl.param("weight", data)
    with ppl.plate("data", len(data["x"])):
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=prior).to_event(1))
        first, second = z[..., 0], z[..., 1]
        loc = weight[0] * first + weight[1] * second + weight[2] * first * second
        ppl.sample("x", ppl.dist.Normal(loc, 1.0), obs=data["x"])


def bits_guide(ppl, data):
    encoder = ppl.param("encoder", data)
    with ppl.plate("data", len(data["x"])):
        logits = data["x"][..., None] * encoder[0] + encoder[1]
        ppl.sample("z", ppl.dist.Bernoulli(logits=logits).to_event(1))


def bits_terms(p, x):
    log_q, log_p = [], []
    for b, a in itertools.product((0, 1), repeat=2):  # state s is a + 2 b
        logits = x * p["encoder"][0] + p["encoder"][1]
        log_q.append(bernoulli(a, logits[0]) + bernoulli(b, logits[1]))
        loc = p["weight"][0] * a + p["weight"][1] * b + p["weight"][2] * a * b
        prior = bernoulli(a, p["prior"][0]) + bernoulli(b, p["prior"][1])
        log_p.append(prior + normal(x, loc))
    return log_q, log_p


def chain_model(ppl, data):
    slope = ppl.param("slope", data)
    with ppl.plate("data", len(data["x"])):
        c = ppl.sample("c", ppl.dist.Normal(0.0, 1.0))
        a = ppl.sample("a", ppl.dist.Bernoulli(logits=slope[0] + 0.0 * c))
        b = ppl.sample("b", ppl.dist.Bernoulli(logits=slope[1] * a))
        loc = slope[2] * a + slope[3] * b * c + a * b
        ppl.sample("x", ppl.dist.Normal(loc, 1.0), obs=data["x"])


def chain_guide(ppl, data):
    """The first is a root; the second depends on it and on a continuous latent."""
    gate, loc = ppl.param("gate", data), ppl.param("loc", data)
    with ppl.plate("data", len(data["x"])):
        a = ppl.sample("a", ppl.dist.Bernoulli(logits=gate[0] + gate[1] * data["x"]))
        c = ppl.sample("c", ppl.fixed_noise_normal(loc[0] * data["x"], ppl.exp(loc[1])))
        ppl.sample("b", ppl.dist.Bernoulli(logits=gate[2] + gate[3] * a + gate[4] * c))


def chain_terms(p, x):
    c = p["loc"][0] * x + np.exp(p["loc"][1]) * NOISE
    log_q, log_p = [], []
    for b, a in itertools.product((0, 1), repeat=2):
        log_q.append(
            bernoulli(a, p["gate"][0] + p["gate"][1] * x)
            + bernoulli(b, p["gate"][2] + p["gate"][3] * a + p["gate"][4] * c)
        )
        loc = p["slope"][2] * a + p["slope"][3] * b * c + a * b
        log_p.append(
            normal(c, 0.0)
            - normal(c, p["loc"][0] * x, p["loc"][1])
            + bernoulli(a, p["slope"][0])
            + bernoulli(b, p["slope"][1] * a)
            + normal(x, loc)
        )
    return log_q, log_p


X = 0.8


def loss_of(terms):
    def loss(p, expected=expected):
        return -expected(*terms(p, X))

    return loss


RNG = np.random.default_rng(11)
BITS = Program(
    "bits",
    bits_model,
    bits_guide,
    loss_of(bits_terms),
    {name: RNG.normal(size=n) for name, n in {"prior": 2, "weight": 3, "encoder": (2, 2)}.items()},
    {"x": np.array([X])},
    ("data",),
    4,
)
CHAIN = Program(
    "chain",
    chain_model,
    chain_guide,
    loss_of(chain_terms),
    {name: RNG.normal(size=n) for name, n in {"slope": 4, "gate": 5, "loc": 2}.items()},
    {"x": np.array([X])},
    ("data",),
    4,
)


def sigmoid(logit):
    return 1 / (1 + np.exp(-logit))


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
    assert case.layout(elbo).paired == ("z",)
    codes = np.asarray(case.record(elbo, vectorize=vectorize, with_codes=True).codes)
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


# -------------------------------------------------------------------------------- wake-sleep


DISTINCT = np.array([[0, 2], [1, 3], [3, 0]])


def run(shim, module, name, case, states, **options):
    elbo = case.forced(getattr(shim.module(f"infer.{module}"), name), **options)
    elbo.draws = states
    loss, grads = case.run(elbo)
    return loss, grads, elbo.info


@pytest.mark.parametrize("beta", [1.0, pytest.param(0.4, marks=pytest.mark.slow)])
def test_wake_sleep_is_policy_search_at_the_temperature_beta(shim, beta):
    """A target that no T above beta reaches leaves T = beta."""
    case = shim.Case(VAE)
    loss, grads, info = run(
        shim, "wake_sleep", "WakeSleep_ELBO", case, DISTINCT, num_particles=3, beta=beta
    )
    options = {"target_ess": 1e-9, "importance_weighted": beta == 1.0}
    policy_loss, policy, policy_info = run(
        shim, "daps", "DAPS_ELBO", case, DISTINCT, num_particles=3, beta=beta, **options
    )
    np.testing.assert_allclose(float(policy_info.temperature), beta)
    np.testing.assert_allclose(loss, policy_loss, rtol=1e-12)
    np.testing.assert_allclose(float(info.ess), float(policy_info.ess), rtol=1e-9)
    np.testing.assert_allclose(grads["encoder"], policy["encoder"], rtol=1e-9)
    if beta == 1.0:
        assert_same(grads, policy, 1e-9)


def softmax(scores):
    weights = np.exp(scores - scores.max(0))
    return weights / weights.sum(0)


def mixed_terms(p, c, x, states):
    """Log q and log p of the drawn states, the continuous latent held fixed."""
    a, b = states % 2, states // 2
    log_q = normal(c, p["loc"][0] * x, p["loc"][1]) + bernoulli(a, p["gate"][0] + p["gate"][1] * c)
    log_q = log_q + log_softmax(p["step"] * (a + c * x)[:, None])[[0, 1, 2], b]
    loc = p["slope"][0] * c + p["slope"][1] * a * c + p["slope"][2] * b
    log_p = normal(c, 0.0) + bernoulli(a, p["link"][0, 0]) + normal(x, loc)
    return log_q, log_p + log_softmax(p["link"][1] * a[:, None])[[0, 1, 2], b]


def test_wake_sleep_sends_no_gradient_through_draws(shim):
    """Continuous latents too are weighed draws, and no path leads to them."""
    program = BY_NAME["mixed"]
    _, grads, info = run(
        shim, "wake_sleep", "WakeSleep_ELBO", shim.Case(program), DISTINCT, num_particles=3
    )
    p, bounds = program.params, []
    noise = [p["loc"][0] * x + np.exp(p["loc"][1]) * NOISE for x in program.data["x"]]
    held = list(zip(noise, program.data["x"], DISTINCT.T, strict=True))

    def surrogate(moved):
        total = 0.0
        for c, x, states in held:
            log_q, log_p = mixed_terms(p, c, x, states)
            weights = softmax(log_p - log_q)
            log_q, log_p = mixed_terms(moved, c, x, states)
            total = total - ((weights - 1 / 3) * log_q + weights * log_p).sum()
        return total

    assert_same(grads, gradient(surrogate, p), 1e-9)
    for c, x, states in held:
        log_q, log_p = mixed_terms(p, c, x, states)
        bounds.append(np.log(np.exp(log_p - log_q).mean()))
    np.testing.assert_allclose(float(info.iwae), np.mean(bounds), rtol=1e-12)


def dream_model(ppl, data):
    theta = ppl.param("theta", data)
    with ppl.plate("data", 4000):
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=theta[0] + 0.0 * data["x"]))
        ppl.sample("x", ppl.dist.Bernoulli(logits=theta[1] + theta[2] * z), obs=data["x"])


def dream_guide(ppl, data):
    phi = ppl.param("phi", data)
    with ppl.plate("data", 4000):
        ppl.sample("z", ppl.dist.Bernoulli(logits=phi[0] + phi[1] * data["x"]))


DREAM = Program(
    "dream",
    dream_model,
    dream_guide,
    None,
    {"theta": np.array([0.5, -1.0, 2.0]), "phi": np.array([0.3, -0.7])},
    {"x": np.zeros(4000)},
    ("data",),
    2,
)


def put_x(made, args, kwargs):
    """The programs take a dict of data."""
    return ({"x": made["x"] * 1.0},), kwargs


def test_sleep_teaches_the_guide_the_models_own_posterior(shim):
    """Against the exact mean over the model's draws, in standard errors."""
    theta, phi = DREAM.params["theta"], DREAM.params["phi"]
    terms, probs = [], []
    for z, x in itertools.product((0, 1), repeat=2):
        probs.append(np.exp(bernoulli(z, theta[0]) + bernoulli(x, theta[1] + theta[2] * z)))
        slope = z - sigmoid(phi[0] + phi[1] * x)
        terms.append(np.array([slope, slope * x]))
    exact = np.array(probs) @ terms
    error = np.sqrt((np.array(probs) @ (terms - exact) ** 2) / 4000)
    elbo = shim.module("infer.wake_sleep").WakeSleep_ELBO(2, sleep=1.0, replace_data=put_x)
    grads = shim.Case(DREAM).run(elbo)[1]
    assert (np.abs(grads["phi"] / -4000 - exact) < 5 * error).all()
    assert np.abs(grads["theta"]).min() > 1.0  # the model stays awake
    awake = np.array([sigmoid(theta[0]) - sigmoid(phi[0]), 0.0])  # at the real data, all zero
    assert (np.abs(awake - exact) > 5 * error).any()


def test_sleep_without_a_place_for_the_data(shim):
    elbo = shim.module("infer.wake_sleep").WakeSleep_ELBO(sleep=0.5)
    with pytest.raises(
        ValueError, match=r"observed sites are .*'x'.*argument is dict.*replace_data"
    ):
        shim.Case(DREAM).run(elbo)


# ------------------------------------------------------------------------------------- common


def test_a_loop_over_particles_cuts_the_same_paths(shim):
    program, found = BY_NAME["mixed"], []
    for vectorize in (True, False):
        options = {"num_particles": 3, "vectorize_particles": vectorize}
        case = shim.Case(program)
        found.append(run(shim, "wake_sleep", "WakeSleep_ELBO", case, DISTINCT, **options))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-12)
    assert_same(found[0][1], found[1][1], 1e-9)


@pytest.mark.parametrize(
    ("module", "name", "options", "message"),
    [
        ("vimco", "VIMCO_ELBO", {"num_particles": 1}, "`num_particles` must be .* at least 2"),
        ("vimco", "VIMCO_ELBO", {"baseline": "mean"}, "`baseline` must be one of"),
        ("vimco", "VIMCO_ELBO", {"beta": 0.0}, "`beta` must be positive"),
        ("disarm", "DisARM_ELBO", {"num_particles": 3}, "`num_particles` must be even .* got 3"),
        ("disarm", "DisARM_ELBO", {"num_particles": 0}, "`num_particles` must be .* at least 2"),
        ("wake_sleep", "WakeSleep_ELBO", {"sleep": 1.5}, "`sleep` is a share"),
        ("wake_sleep", "WakeSleep_ELBO", {"beta": 0}, "`beta` must be positive"),
        ("wake_sleep", "WakeSleep_ELBO", {"num_particles": 1}, "`num_particles`"),
    ],
)
def test_bad_settings(shim, module, name, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(shim.module(f"infer.{module}"), name)(**options)


def test_a_learned_baseline_ends_at_the_mean_score(shim):
    """NVIL: the guide's site "baseline" is fitted to the scores while the guide learns."""
    params = VAE.params | {"guess": np.zeros(2)}

    def guide(ppl, data):
        with ppl.plate("data", 2):
            ppl.deterministic("baseline", ppl.param("guess", data))
            sample_codes(ppl, data)

    learned = shim.module("ops.baselines").learned()
    case = shim.Case(VAE, params, guide=guide)
    elbo = shim.module("infer.reinforce").Reinforce_ELBO(8, baseline=learned)
    losses = []
    for seed in range(150):
        loss, grads = case.run(elbo, seed)
        case.move(grads, 0.1)
        losses.append(loss)
    assert np.mean(losses[-20:]) < np.mean(losses[:5]) - 0.5
    guess = case.params["guess"].sum().item()  # of both data
    np.testing.assert_allclose(guess, -np.mean(losses[-20:]), atol=0.5)
