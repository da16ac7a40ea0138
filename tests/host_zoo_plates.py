"""More models of the frameworks' test suites, with plates, masks and scales: see `host_zoo`."""

import numpy as np
from host_zoo import NOT_BERNOULLI, NOT_LISTED, X, bernoulli, host, seen

# ---------------------------------------------------------------------------------- a plate


def plated_coins(ppl):
    with ppl.plate("data", 2):
        z = bernoulli(ppl, "z", -0.4)
        seen(ppl, "x", ppl.param("slope") * z, X)


def plated_coins_guide(ppl):
    with ppl.plate("data", 2):
        bernoulli(ppl, "z", ppl.param("p"))


def one_row(ppl):
    with ppl.plate("data", 2, subsample=ppl.rows([1])):
        z = bernoulli(ppl, "z", -0.4)
        seen(ppl, "x", ppl.param("slope") * z, X[1:])


def one_row_guide(ppl):
    with ppl.plate("data", 2, subsample=ppl.rows([1])):
        bernoulli(ppl, "z", ppl.param("p")[1:])


def random_rows(ppl):
    with ppl.plate("data", 3, subsample_size=2) as rows:
        z = bernoulli(ppl, "z", -0.4)
        seen(ppl, "x", z, 0.0 * rows + ppl.array([-0.5, 2.0, 0.3])[rows])


def random_rows_guide(ppl):
    with ppl.plate("data", 3, subsample_size=2) as rows:
        bernoulli(ppl, "z", ppl.param("p")[rows])


def plated_normals(ppl):
    with ppl.plate("data", 2):
        z = ppl.sample("z", ppl.dist.Normal(0.0, 1.0))
        seen(ppl, "x", z, X)


def plated_normals_guide(ppl):
    with ppl.plate("data", 2):
        ppl.sample("z", ppl.dist.Normal(ppl.param("locs"), ppl.exp(ppl.param("log_scale"))))


def plated_scored_normals_guide(ppl):
    with ppl.plate("data", 2):
        ppl.sample("z", ppl.score_normal(ppl.param("locs"), ppl.exp(ppl.param("log_scale"))))


def one_row_of_normals(ppl):
    with ppl.plate("data", 2, subsample=ppl.rows([0])):
        z = ppl.sample("z", ppl.dist.Normal(0.0, 1.0))
        seen(ppl, "x", z, X[:1])


def one_row_of_scored_normals_guide(ppl):
    with ppl.plate("data", 2, subsample=ppl.rows([0])):
        ppl.sample("z", ppl.score_normal(ppl.param("locs")[:1], ppl.exp(ppl.param("log_scale"))))


def a_mixture(ppl):
    locs = ppl.param("locs")
    with ppl.plate("data", 2):
        z = ppl.sample("z", ppl.dist.Categorical(probs=ppl.array([0.3, 0.7])))
        seen(ppl, "x", locs[z], X)


def a_mixture_guide(ppl):
    with ppl.plate("data", 2):
        ppl.sample("z", ppl.dist.Categorical(logits=ppl.param("logits")))


def mixture_of_vectors(ppl):
    locs = ppl.param("table")  # (2, 3)
    with ppl.plate("data", 2):
        z = ppl.sample("z", ppl.dist.Categorical(probs=ppl.array([0.3, 0.7])))
        x = ppl.array([[0.1, 0.2, 0.3], [-0.5, 1.0, 0.0]])
        ppl.sample("x", ppl.dist.Normal(locs[z], 1.0).to_event(1), obs=x)


def counts_of_zero(ppl):
    with ppl.plate("data", 3):
        gate = bernoulli(ppl, "gate", -0.4)
        rate = ppl.where(gate > 0, 1e-3, ppl.exp(ppl.param("slope")))
        ppl.sample("x", ppl.dist.Poisson(rate), obs=ppl.array([0.0, 2.0, 0.0]))


def counts_of_zero_guide(ppl):
    with ppl.plate("data", 3):
        bernoulli(ppl, "gate", ppl.param("p"))


host(plated_coins, plated_coins_guide, p=[0.4, -0.2], slope=0.8)
host(one_row, one_row_guide, p=[0.4, -0.2], slope=0.8)
host(random_rows, random_rows_guide, p=[0.4, -0.2, 0.1])
LOCS = {"locs": [0.2, -0.1], "log_scale": -0.2}
host(plated_normals, plated_normals_guide, **LOCS)
host(plated_normals, plated_scored_normals_guide, refusals=NOT_LISTED, **LOCS)
host(one_row_of_normals, one_row_of_scored_normals_guide, refusals=NOT_LISTED, **LOCS)
host(
    a_mixture,
    a_mixture_guide,
    refusals=NOT_BERNOULLI,
    locs=[-0.3, 1.2],
    logits=[[0.1, 0.2], [-0.3, 0.4]],
)
TABLE = [[0.1, 0.5, -0.2], [0.3, -0.7, 0.4]]
host(
    mixture_of_vectors,
    a_mixture_guide,
    refusals=NOT_BERNOULLI,
    table=TABLE,
    logits=[[0.1, 0.2], [-0.3, 0.4]],
)
host(counts_of_zero, counts_of_zero_guide, p=[0.4, -0.2, 0.1], slope=0.3)

# ------------------------------------------------------------------------------ two plates


def nested(ppl):
    with ppl.plate("outer", 2):
        z = bernoulli(ppl, "z", -0.4)
        with ppl.plate("inner", 3):
            y = bernoulli(ppl, "y", z - 0.3)
            seen(ppl, "x", z + y, np.arange(6).reshape(3, 2) / 6)


def nested_guide(ppl):
    with ppl.plate("outer", 2):
        z = bernoulli(ppl, "z", ppl.param("p"))
        with ppl.plate("inner", 3):
            bernoulli(ppl, "y", ppl.param("slope") * z)


def nested_rows(ppl):
    with ppl.plate("outer", 4, subsample=ppl.rows([2, 0])):
        z = bernoulli(ppl, "z", -0.4)
        with ppl.plate("inner", 5, subsample=ppl.rows([1])):
            y = bernoulli(ppl, "y", z - 0.3)
            seen(ppl, "x", z + y, [[0.3, 1.2]])


def nested_rows_guide(ppl):
    with ppl.plate("outer", 4, subsample=ppl.rows([2, 0])):
        z = bernoulli(ppl, "z", ppl.param("p"))
        with ppl.plate("inner", 5, subsample=ppl.rows([1])):
            bernoulli(ppl, "y", ppl.param("slope") * z)


def crossed(ppl):
    rows, columns = ppl.plate("rows", 2, dim=-1), ppl.plate("columns", 2, dim=-2)
    with rows:
        a = bernoulli(ppl, "a", -0.4)
    with columns:
        b = bernoulli(ppl, "b", 0.2)
    with rows, columns:
        c = bernoulli(ppl, "c", a - b)
        seen(ppl, "x", a + b + c, [[0.1, 0.9], [1.3, 2.0]])


def crossed_guide(ppl):
    rows, columns = ppl.plate("rows", 2, dim=-1), ppl.plate("columns", 2, dim=-2)
    with rows:
        bernoulli(ppl, "a", ppl.param("p"))
    with columns:
        bernoulli(ppl, "b", ppl.param("column"))
    with rows, columns:
        bernoulli(ppl, "c", ppl.param("slope"))


def disjoint(ppl):
    with ppl.plate("first", 2):
        z = bernoulli(ppl, "z", -0.4)
        seen(ppl, "x", z, X)
    with ppl.plate("second", 3):
        y = bernoulli(ppl, "y", 0.2)
        seen(ppl, "u", y, [0.2, 0.9, 1.4])


def disjoint_guide(ppl):
    with ppl.plate("first", 2):
        bernoulli(ppl, "z", ppl.param("p"))
    with ppl.plate("second", 3):
        bernoulli(ppl, "y", ppl.param("slope"))


def different_depths(ppl):
    for i in range(2):
        a = bernoulli(ppl, f"a_{i}", 0.3)
        for j in range(1 - i):
            with ppl.plate(f"inner_{i}_{j}", 2):
                bernoulli(ppl, f"b_{i}_{j}", a - 0.5)
        if i == 1:
            with ppl.plate("inner", 2):
                bernoulli(ppl, "c", 0.1 - a)


def different_depths_guide(ppl):
    for i in range(2):
        a = bernoulli(ppl, f"a_{i}", ppl.param("p")[i])
        for j in range(1 - i):
            with ppl.plate(f"inner_{i}_{j}", 2):
                bernoulli(ppl, f"b_{i}_{j}", ppl.param("slope") * a)
        if i == 1:
            with ppl.plate("inner", 2):
                bernoulli(ppl, "c", ppl.param("slope"))


def far_left(ppl):
    with ppl.plate("far", 2, dim=-3):
        z = bernoulli(ppl, "z", -0.4)
        with ppl.plate("near", 2, dim=-1):
            y = bernoulli(ppl, "y", 0.3 - z)
        seen(ppl, "x", z, [[[0.2]], [[1.1]]])
        with ppl.plate("other", 2, dim=-1):
            seen(ppl, "u", z, X)
    del y


def far_left_guide(ppl):
    with ppl.plate("far", 2, dim=-3):
        z = bernoulli(ppl, "z", ppl.param("p")[:, None, None])
        with ppl.plate("near", 2, dim=-1):
            bernoulli(ppl, "y", ppl.param("slope") * z)


def single_cell(ppl):
    with ppl.plate("data", 1):
        z = bernoulli(ppl, "z", -0.4)
        seen(ppl, "x", z, [0.7])


def single_cell_guide(ppl):
    with ppl.plate("data", 1):
        bernoulli(ppl, "z", ppl.param("p"))


def shared_and_own(ppl):
    a = bernoulli(ppl, "a", 0.3)
    with ppl.plate("data", 2):
        z = bernoulli(ppl, "z", a - 0.4)
        seen(ppl, "x", ppl.param("slope") * z, X)
    bernoulli(ppl, "b", -0.2)


def shared_and_own_guide(ppl):
    bernoulli(ppl, "b", ppl.param("q"))
    with ppl.plate("data", 2):
        bernoulli(ppl, "z", ppl.param("p"))
    bernoulli(ppl, "a", ppl.param("q") + 0.5)


def summed_outside(ppl):
    with ppl.plate("data", 3):
        z = bernoulli(ppl, "z", -0.4)
    seen(ppl, "x", z.sum(-1, keepdims=True)[..., 0], 1.3)


def summed_outside_guide(ppl):
    with ppl.plate("data", 3):
        bernoulli(ppl, "z", ppl.param("p"))


def nuisances(ppl):
    data = ppl.plate("data", 2)
    ppl.sample("a", ppl.dist.Normal(0.0, 1.0))
    with data:
        z = bernoulli(ppl, "z", -0.4)
    ppl.sample("b", ppl.dist.Normal(2.0, 3.0))
    with data:
        seen(ppl, "x", z, X)


def nuisances_guide(ppl):
    ppl.sample("b", ppl.score_normal(2.0, 3.0))
    with ppl.plate("data", 2):
        bernoulli(ppl, "z", ppl.param("p"))
    ppl.sample("a", ppl.score_normal(0.0, 1.0))


host(nested, nested_guide, p=[0.4, -0.2], slope=0.8)
host(nested_rows, nested_rows_guide, p=[0.4, -0.2], slope=0.8)
host(crossed, crossed_guide, p=[0.4, -0.2], column=[[0.3], [-0.5]], slope=0.2)
host(disjoint, disjoint_guide, p=[0.4, -0.2], slope=0.8)
host(different_depths, different_depths_guide, p=[0.4, -0.2], slope=0.8)
host(far_left, far_left_guide, p=[0.4, -0.2], slope=0.8)
host(single_cell, single_cell_guide, p=[0.4])
host(shared_and_own, shared_and_own_guide, p=[0.4, -0.2], q=0.1, slope=0.8)
host(summed_outside, summed_outside_guide, p=[0.4, -0.2, 0.1])
host(nuisances, nuisances_guide, refusals=NOT_LISTED, nodes=9, p=[0.4, -0.2])
