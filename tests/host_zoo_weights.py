"""More models of the frameworks' test suites: masks, scales, and sites of other kinds."""

from host_zoo import NOT_LISTED, X, bernoulli, host, seen
from host_zoo_plates import LOCS

# -------------------------------------------------------------------------- masks and scales


def masked(mask, *, latent):
    def model(ppl):
        with ppl.plate("data", 2):
            if latent:
                with ppl.mask(mask=ppl.bools(mask)):
                    z = bernoulli(ppl, "z", -0.4)
            else:
                z = bernoulli(ppl, "z", -0.4)
            with ppl.mask(mask=ppl.bools(mask)):
                seen(ppl, "x", ppl.param("slope") * z, X)

    def guide(ppl):
        with ppl.plate("data", 2):
            if latent:
                with ppl.mask(mask=ppl.bools(mask)):
                    bernoulli(ppl, "z", ppl.param("p"))
            else:
                bernoulli(ppl, "z", ppl.param("p"))

    model.__name__ = f"masked_{'latent' if latent else 'data'}_{mask}"
    return model, guide


for each in (True, False, [False, True]):
    for latent in (True, False):
        host(*masked(each, latent=latent), p=[0.4, -0.2], slope=0.8)


def partly_observed(mask):
    def model(ppl):
        z = bernoulli(ppl, "z", -0.4)
        with ppl.plate("data", 2):
            x = ppl.dist.Normal(z, 1.0)
            ppl.sample("x", x, obs=ppl.array([0.3, 1.2]), obs_mask=ppl.bools(mask))

    def guide(ppl):
        z = bernoulli(ppl, "z", ppl.param("p"))
        with ppl.plate("data", 2), ppl.mask(mask=~ppl.bools(mask)):
            ppl.sample("x_unobserved", ppl.dist.Normal(ppl.param("slope") * z, 1.0))

    model.__name__ = f"partly_observed_{mask}"
    return model, guide


for each in ([True, False], [False, False]):
    host(*partly_observed(each), p=0.4, slope=0.8)


def scaled(scale, *, latent):
    def model(ppl):
        with ppl.plate("data", 2):
            with ppl.scale(scale=ppl.array(scale if latent else 1.0)):
                z = bernoulli(ppl, "z", -0.4)
            with ppl.scale(scale=ppl.array(scale)):
                seen(ppl, "x", ppl.param("slope") * z, X)

    def guide(ppl):
        with ppl.plate("data", 2), ppl.scale(scale=ppl.array(scale if latent else 1.0)):
            bernoulli(ppl, "z", ppl.param("p"))

    model.__name__ = f"scaled_{'all' if latent else 'data'}_{scale}"
    return model, guide


for each in (2.0, 0.1, [0.1, 0.9]):
    for latent in (True, False):
        host(*scaled(each, latent=latent), p=[0.4, -0.2], slope=0.8)


def scaled_normals(ppl):
    with ppl.scale(scale=ppl.array(2.0)), ppl.plate("data", 2):
        z = ppl.sample("z", ppl.dist.Normal(0.0, 1.0))
        seen(ppl, "x", z, X)


def scaled_normals_guide(ppl):
    with ppl.scale(scale=ppl.array(2.0)), ppl.plate("data", 2):
        ppl.sample("z", ppl.score_normal(ppl.param("locs"), ppl.exp(ppl.param("log_scale"))))


host(scaled_normals, scaled_normals_guide, refusals=NOT_LISTED, **LOCS)

# --------------------------------------------------------------- other families, other sites


def told_sites(ppl):
    z = bernoulli(ppl, "z", -0.4)
    y = ppl.deterministic("y", 2.0 * z)
    seen(ppl, "x", y, 0.7)


def told_sites_guide(ppl):
    z = bernoulli(ppl, "z", ppl.param("p"))
    ppl.deterministic("w", 3.0 * z)


def auxiliary_guide(ppl):
    extra = bernoulli(ppl, "extra", ppl.param("q"), infer={"is_auxiliary": True})
    bernoulli(ppl, "z", ppl.param("p") + extra)


def auxiliary(ppl):
    z = bernoulli(ppl, "z", -0.4)
    seen(ppl, "x", z, 0.7)


def points(ppl):
    loc = ppl.sample("centre", ppl.dist.Normal(0.0, 1.0))
    with ppl.plate("data", 2):
        z = bernoulli(ppl, "z", -0.4)
        seen(ppl, "x", loc * z, X)


def points_guide(ppl):
    ppl.sample("centre", ppl.dist.Delta(ppl.param("loc")))
    with ppl.plate("data", 2):
        bernoulli(ppl, "z", ppl.param("p"))


def ordered(ppl):
    z = bernoulli(ppl, "z", 0.2)
    with ppl.plate("data", 3):
        answers = ppl.dist.OrderedLogistic(ppl.param("slope") * z, ppl.array([-1.0, 0.5]))
        ppl.sample("x", answers, obs=ppl.integers([0, 2, 1]))


def marked_guide(ppl):
    bernoulli(ppl, "z", ppl.param("p"), infer={"enumerate": "parallel"})


def observed_in_the_guide(ppl):
    bernoulli(ppl, "z", ppl.param("p"))
    seen(ppl, "w", ppl.param("p"), 0.3)


host(told_sites, told_sites_guide, p=0.4)
host(auxiliary, auxiliary_guide, p=0.4, q=0.1)
host(points, points_guide, p=[0.4, -0.2], loc=0.3)
host(ordered, marked_guide, p=0.4, slope=0.8)
host(auxiliary, observed_in_the_guide, p=0.4)
