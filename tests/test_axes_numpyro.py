"""Where cells lie in a traced program: never said of what leads from one to another.

Each program is run with one cell changed after the other, to see which results change.
"""

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("numpyro")
import jax.numpy as jnp  # noqa: E402
from jax import lax  # noqa: E402

from numpyro_dvae.programs.structure.axes import (  # noqa: E402
    GATHERED,
    MIXED,
    _join,
    axis_of,
    places_of,
)

SIZE = 3  # cells; the other sizes are the same or others, on purpose
TABLE = jnp.array([[0.3, -1.0, 0.7], [1.2, 0.4, -0.2], [0.1, 0.9, 2.0]])
ORDER = jnp.array([2, 0, 1])


def image(z):
    return jnp.stack([z, 2 * z, z**2, z + 1], -1).reshape(-1, 2, 2, 1) + 0.1


def convolved(z):
    kernel = jnp.arange(4.0).reshape(2, 2, 1, 1)
    return lax.conv_general_dilated(
        image(z), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ).sum((1, 2, 3))


def stepped(z):
    return lax.scan(lambda carry, x: (carry * 0.5 + x, carry), z, jnp.ones((4, 1)))[1][-1]


def gathered(operand, indices, sizes, **dims):
    dims = {"offset_dims": (), "collapsed_slice_dims": (), **dims}
    return lax.gather(operand, indices, lax.GatherDimensionNumbers(**dims), sizes)


def counted(z):
    """What no draw leads to at first."""
    step = lambda c: (c[0] + 1, c[1] + c[2], c[2])  # noqa: E731
    return lax.while_loop(lambda c: c[0] < 3, step, (0, jnp.zeros(3), z))[1]


def convolved_by(z):
    return jnp.convolve(TABLE[0], z, "same")


APART = {
    "elements": lambda z: jnp.exp(z) - jnp.where(z > 0, z, 1.0),
    "outer": lambda z: (z[:, None] * TABLE[0]).sum(1),
    "outer, from the left": lambda z: (z[None] * TABLE[0][:, None]).sum(0),
    "transposed": lambda z: (z[:, None] + TABLE[:2, :1].T).T.max(0),
    "merged and parted": lambda z: (z[:, None] * TABLE[0]).reshape(-1).reshape(3, 3)[:, 1],
    "a matrix": lambda z: (jnp.stack([z, z**2], -1) @ TABLE[:2]).prod(-1),
    "the matrix first": lambda z: (TABLE[:, :2] @ jnp.stack([z, z**2])).prod(0),
    "of each a matrix": lambda z: jnp.einsum("ni,nij->nj", z[:, None] * TABLE, TABLE[:, :, None])[
        :, 0
    ],
    "a table": lambda z: TABLE[z.astype(int)].sum(-1),
    "along an axis": lambda z: jnp.take_along_axis(TABLE, z.astype(int)[:, None], 1)[:, 0],
    "normalised": lambda z: jax.nn.log_softmax(z[:, None] * TABLE, -1)[:, 0],
    "joined": lambda z: jnp.concatenate([z[:, None], TABLE], 1).sum(1),
    "stacked": lambda z: jnp.stack([z, z + 1.0]).prod(0),
    "sorted": lambda z: jnp.sort(z[:, None] * TABLE, 1)[:, 0],
    "summed up": lambda z: jnp.cumsum(z[:, None] * TABLE, 1)[:, 1],
    "padded": lambda z: jnp.pad(z[:, None], ((0, 0), (1, 1))).sum(1),
    "a slice": lambda z: lax.dynamic_slice_in_dim(z[:, None] * TABLE, 1, 1, 1)[:, 0],
    "convolved": convolved,
    "steps": stepped,
    "a loop": lambda z: lax.fori_loop(0, 3, lambda i, c: c * 0.5 + i, z),
    "compiled": lambda z: jax.jit(lambda x: jax.checkpoint(jnp.sin)(x))(z),
    "a gradient": lambda z: jax.grad(lambda x: (x**2 * z).sum())(2 * z),
    "a branch": lambda z: lax.cond(TABLE[0, 0] > 0, lambda x: x, lambda x: -x, z),
    "a branch without draws": lambda z: lax.cond(TABLE[0, 0] > 0, lambda x: TABLE[0], jnp.sin, z),
    "a count": counted,
    "rows of a table of all": lambda z: (TABLE * z)[jnp.array([2, 0])].sum(0),
    "put in whole": lambda z: lax.dynamic_update_slice_in_dim(TABLE, z[:, None], 1, 1).sum(1),
    "lower": lambda z: jnp.linalg.cholesky(jnp.eye(2) * (1.0 + z[:, None, None]))[:, 0, 0],
}
MIXING = {
    "a mean": lambda z: z - z.mean(),
    "the next": lambda z: jnp.roll(z, 1),
    "the first": lambda z: z + z[0],
    "turned": lambda z: z[::-1],
    "in an order": lambda z: z[ORDER],
    "sorted": lambda z: jnp.sort(z),
    "summed up": lambda z: jnp.cumsum(z),
    "a matrix of all": lambda z: TABLE @ z,
    "a square's other side": lambda z: (z[:, None] * TABLE).sum(0),
    "of all and each": lambda z: (z[:, None] + z).max(0),
    "of each and all": lambda z: (z[:, None] + z).max(1),
    "steps over cells": lambda z: lax.scan(lambda c, x: (c + x, c + x), 0.0, z)[1],
    "a loop that asks": lambda z: lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1.0, z),
    "a branch that asks": lambda z: lax.cond(z.sum() > 3, lambda x: x, lambda x: -x, z),
    "merged and parted otherwise": lambda z: (z[:, None] * TABLE).reshape(-1)[:3],
    "over several axes": lambda z: jnp.exp((z[:, None] * jnp.ones(4)).reshape(2, 6))[0, :3],
    "branches of two minds": lambda z: lax.cond(
        TABLE[0, 0] > 0, lambda x: x.T, lambda x: x, z[:, None] + TABLE
    )[:, 0],
    "each with each": lambda z: ((z[:, None] * TABLE) @ (z[:, None] * TABLE).T)[:, 0],
    "convolved by the cells": convolved_by,
    "together an index": lambda z: (
        TABLE[0]
        * gathered(
            jnp.arange(27.0).reshape(3, 3, 3),
            z.astype(int),
            (1, 1, 1),
            collapsed_slice_dims=(0, 1, 2),
            start_index_map=(0, 1, 2),
        )
    ),
    "windows": lambda z: gathered(
        z, jnp.array([[0], [1], [0]]), (2,), offset_dims=(1,), start_index_map=(0,)
    ).sum(1),
    "put in at another place": lambda z: (
        lax.dynamic_update_slice_in_dim(jnp.zeros(6), z, 1, 0)[:3] + 0.5 * z
    ),
    "put in among others": lambda z: lax.dynamic_update_slice_in_dim(
        z[:, None] + TABLE, z[None], 1, 0
    )[:, 0],
    "a batch": lambda z: convolved(z) / convolved(z).std(),
}


def place_in(program):
    """The place of the cells in the result; None of no draws."""
    traced = jax.make_jaxpr(program)(jnp.zeros(SIZE))
    (place,) = places_of(traced, [1], SIZE)
    return place


def changes(program):
    """Which results change with which cell: one row a cell."""
    run, start = jax.jit(program), np.array([0.0, 2.0, 1.0])
    before = np.asarray(run(start))
    found = np.zeros((SIZE, SIZE), bool)
    for cell in range(SIZE):
        for value in (0.0, 1.0, 2.0):
            changed = start.copy()
            changed[cell] = value
            found[cell] |= ~np.isclose(np.asarray(run(changed)), before)
    return found


@pytest.mark.parametrize("name", APART)
def test_cells_that_keep_apart_are_seen_to(name):
    assert not (changes(APART[name]) & ~np.eye(SIZE, dtype=bool)).any()
    assert axis_of(place_in(APART[name]), (SIZE,), SIZE) == (0, 1)


@pytest.mark.parametrize("name", MIXING)
def test_cells_that_lead_each_other_are_never_taken_to_keep_apart(name):
    assert (changes(MIXING[name]) & ~np.eye(SIZE, dtype=bool)).any()
    assert place_in(MIXING[name]) in (GATHERED, MIXED)


def test_places_are_joined():
    """In a branch, and around a loop: what no draw leads to adds nothing."""
    cases = [(None, 3, 3), (3, None, 3), (3, 3, 3), (1, 3, MIXED), (GATHERED, 1, GATHERED)]
    assert [_join(one, other) for one, other, _ in cases] == [found for *_, found in cases]


def test_an_axis_holds_all_cells_or_none():
    assert axis_of(2, (3, 2), 3) == (0, 1)
    assert axis_of(1, (2, 3), 3) == (1, 1)
    assert axis_of(2, (6,), 3) == (0, 2)
    assert axis_of(4, (2, 6), 3) is None
    assert axis_of(2, (2,), 3) is None
    assert axis_of(1, (), 3) is None


def test_what_comes_from_no_cell_is_in_no_place():
    assert place_in(lambda z: TABLE[0] + jnp.zeros_like(z)) is None
