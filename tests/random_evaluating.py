"""Functions of JAX evaluated by NumPy, so that nothing is compiled: a program costs its trace.

`evaluated` traces a function, as `jax.jit` does, and goes through its operations one by one in
NumPy. An operation that is not known here is done by JAX. Keys are whole numbers, and bits come of
NumPy's generators: as random as JAX's, and other ones.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

__all__ = ["evaluated"]


def evaluated(function):
    """The function, which sees what it sees in `jax.jit`."""

    def run(*args):
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        with np.errstate(all="ignore"):
            found = evaluate(closed, *jax.tree.leaves(args))
        found = [value if value.dtype == object else jnp.asarray(value) for value in found]
        return jax.tree.unflatten(jax.tree.structure(shapes), found)

    return run


def evaluate(program, *values):
    """What a traced program makes of values: a closed one, or one without constants."""
    inner = getattr(program, "jaxpr", program)
    known = dict(zip(inner.constvars, map(_array, getattr(program, "consts", ())), strict=True))
    known |= zip(inner.invars, map(_array, values), strict=True)
    for step in inner.eqns:
        inputs = [v.val if hasattr(v, "val") else known[v] for v in step.invars]
        results = _apply(step, inputs)
        for variable, result in zip(step.outvars, results, strict=True):
            known[variable] = _as_declared(result, variable.aval)
    return [np.asarray(v.val) if hasattr(v, "val") else known[v] for v in inner.outvars]


def _apply(step, inputs):
    name, params = step.primitive.name, step.params
    if name in CALLS:
        return evaluate(params[CALLS[name]], *inputs)
    if name in LOOPS:
        return LOOPS[name](params, inputs)
    inputs = [_array(value) for value in inputs]
    if name in OF_VALUES:
        return [OF_VALUES[name](*inputs)]
    if name in OF_PARAMS:
        found = OF_PARAMS[name](params, *inputs)
        return found if isinstance(found, list) else [found]
    found = step.primitive.bind(*map(jnp.asarray, inputs), **params)
    return found if step.primitive.multiple_results else [found]


def _array(value):
    if jnp.issubdtype(getattr(value, "dtype", np.float64), jax.dtypes.prng_key):
        data = np.asarray(jax.random.key_data(value)).astype(object)
        return np.asarray(data[..., 0] * 2**32 + data[..., 1], object)
    return np.asarray(value)


def _as_declared(value, aval):
    value = np.asarray(value)
    assert value.shape == tuple(aval.shape), (value.shape, aval)
    if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return value.astype(object)
    return value.astype(aval.dtype, copy=False)


# ------------------------------------------------------------------------------- of each entry


def _is_whole(array):
    return np.issubdtype(array.dtype, np.integer)


def _divided(one, two):
    if not _is_whole(one):
        return one / two
    return np.sign(one) * np.sign(two) * (np.abs(one) // np.abs(two))  # towards zero


def _selected(which, *cases):
    return np.choose(np.broadcast_to(which.astype(int), cases[0].shape), cases)


def _shifted(one, two):
    unsigned = f"u{one.dtype.itemsize}"
    moved = np.right_shift(one.view(unsigned), two.astype(unsigned))
    return np.where(two < 8 * one.dtype.itemsize, moved, 0).astype(unsigned).view(one.dtype)


CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
}
OF_VALUES = {
    "abs": np.abs,
    "add": np.add,
    "add_any": np.add,
    "and": np.bitwise_and,
    "ceil": np.ceil,
    "clamp": lambda low, value, high: np.clip(value, low, high),
    "copy": lambda value: value,
    "cos": np.cos,
    "digamma": special.digamma,
    "div": _divided,
    "eq": np.equal,
    "erf": special.erf,
    "erf_inv": special.erfinv,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "ge": np.greater_equal,
    "gt": np.greater,
    "is_finite": np.isfinite,
    "le": np.less_equal,
    "lgamma": special.gammaln,
    "log": np.log,
    "log1p": np.log1p,
    "logistic": special.expit,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "not": np.invert,
    "or": np.bitwise_or,
    "pow": np.power,
    "rem": np.fmod,
    "select_n": _selected,
    "shift_left": np.left_shift,
    "shift_right_logical": _shifted,
    "sign": np.sign,
    "sin": np.sin,
    "sqrt": np.sqrt,
    "square": np.square,
    "stop_gradient": lambda value: value,
    "sub": np.subtract,
    "tanh": np.tanh,
    "xor": np.bitwise_xor,
}


# -------------------------------------------------------------------------------- of shapes


def _broadcast(params, value, *_):
    shape = [1] * len(params["shape"])
    for size, dim in zip(value.shape, params["broadcast_dimensions"], strict=True):
        shape[dim] = size
    return np.broadcast_to(value.reshape(shape), params["shape"])


def _reshaped(params, value):
    dimensions = params["dimensions"]  # the order in which the entries are read
    value = value if dimensions is None else value.transpose(dimensions)
    return value.reshape(params["new_sizes"])


def _sliced(params, value):
    steps = params["strides"] or [1] * value.ndim
    bounds = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return value[tuple(slice(*bound) for bound in bounds)]


def _padded(params, value, filling):
    shape = [
        low + high + size + max(size - 1, 0) * inner
        for size, (low, high, inner) in zip(value.shape, params["padding_config"], strict=True)
    ]
    wide = np.full([max(n, 0) for n in shape], filling)
    bounds = zip(value.shape, params["padding_config"], strict=True)
    places = [low + np.arange(size) * (1 + inner) for size, (low, _, inner) in bounds]
    kept = [(p >= 0) & (p < n) for p, n in zip(places, wide.shape, strict=True)]
    inside = tuple(p[k] for p, k in zip(places, kept, strict=True))
    wide[np.ix_(*inside)] = value[np.ix_(*kept)]
    return wide


def _split(params, value):
    return np.split(value, np.cumsum(params["sizes"])[:-1], params["axis"])


def _iota(params, *_):
    shape, dim = params["shape"], params["dimension"]
    ones = [size if axis == dim else 1 for axis, size in enumerate(shape)]
    return np.broadcast_to(np.arange(shape[dim]).reshape(ones), shape)


def _cast(params, value):
    dtype = np.dtype(params["new_dtype"])
    return np.ascontiguousarray(value).view(dtype).reshape(value.shape)


def _dynamic_slice(params, value, *starts):
    sizes = params["slice_sizes"]
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        first = min(max(int(start), 0), value.shape[axis] - size)
        value = value.take(range(first, first + size), axis)
    return value


def _cumulative(function):
    def run(params, value):
        axis = params["axis"]
        turned = np.flip(value, axis) if params["reverse"] else value
        found = function(turned, axis)
        return np.flip(found, axis) if params["reverse"] else found

    return run


def _over_axes(function):
    return lambda params, value: function(value, tuple(map(int, params["axes"])))


def _first_of(function):
    return lambda params, value: function(value, int(params["axes"][0]))


def _places(indices, dims, sizes, shape):
    """Where slices lie in an operand: an index for each of its dims; and whether within it."""
    batch = indices.shape[:-1]
    starts = {dim: indices[..., k] for k, dim in enumerate(dims["start"])}
    for dim, axis in zip(dims["batching"], dims["of_indices"], strict=True):
        ones = [n if a == axis else 1 for a, n in enumerate(batch)]
        starts[dim] = np.broadcast_to(np.arange(batch[axis]).reshape(ones), batch)
    found, inside = [], np.ones(batch, bool)
    for dim, (size, full) in enumerate(zip(sizes, shape, strict=True)):
        start = starts.get(dim, np.zeros(batch, int)).astype(int)
        inside &= (start >= 0) & (start <= full - size)
        start = np.clip(start, 0, full - size)
        ones = [size if axis == dim else 1 for axis in range(len(sizes))]
        found.append(start.reshape(*batch, *[1] * len(sizes)) + np.arange(size).reshape(ones))
    return tuple(found), inside.reshape(*batch, *[1] * len(sizes))


def _gathered(params, operand, indices):
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    dims = {
        "start": numbers.start_index_map,
        "batching": numbers.operand_batching_dims,
        "of_indices": numbers.start_indices_batching_dims,
    }
    places, inside = _places(indices, dims, sizes, operand.shape)
    found = operand[places]
    if "FILL" in str(params["mode"]):
        nothing = np.nan if np.issubdtype(found.dtype, np.floating) else 0
        nothing = nothing if params["fill_value"] is None else params["fill_value"]
        found = np.where(inside, found, nothing)
    num_batch = indices.ndim - 1
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    found = found.squeeze(tuple(num_batch + dim for dim in gone))
    offsets = list(numbers.offset_dims)
    return np.moveaxis(found, range(num_batch, found.ndim), offsets)


def _scattered(add):
    def run(params, operand, indices, updates):
        numbers = params["dimension_numbers"]
        gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
        window = numbers.update_window_dims
        kept = [dim for dim in range(operand.ndim) if dim not in gone]
        sizes = [1] * operand.ndim
        for dim, axis in zip(kept, window, strict=True):
            sizes[dim] = updates.shape[axis]
        dims = {
            "start": numbers.scatter_dims_to_operand_dims,
            "batching": numbers.operand_batching_dims,
            "of_indices": numbers.scatter_indices_batching_dims,
        }
        places, inside = _places(indices, dims, sizes, operand.shape)
        num_batch = indices.ndim - 1
        values = np.moveaxis(updates, window, range(num_batch, updates.ndim))
        values = values.reshape(*values.shape[:num_batch], *sizes)
        shape = values.shape
        inside = np.broadcast_to(inside, shape)
        places = tuple(np.broadcast_to(place, shape)[inside] for place in places)
        result = operand.copy()
        if add:
            np.add.at(result, places, values[inside])
        else:
            result[places] = values[inside]
        return result

    return run


# -------------------------------------------------------------------------- keys and loops


def _bits(params, keys):
    kind, shape = f"u{params['bit_width'] // 8}", params["shape"]
    drawn = [np.random.default_rng(k).integers(0, 2**64, shape, np.uint64) for k in keys.flat]
    shift = np.uint64(64 - params["bit_width"])
    return np.asarray(np.array(drawn, np.uint64) >> shift, kind).reshape((*keys.shape, *shape))


def _new_keys(key, count):
    words = np.random.SeedSequence(key).generate_state(count, np.uint64)
    return np.array([int(word) for word in words], object)


def _keys_split(params, keys):
    shape = params["shape"]
    found = np.empty((keys.size, int(np.prod(shape))), object)
    for row, key in enumerate(keys.flat):
        found[row] = _new_keys(key, found.shape[1])
    return found.reshape((*keys.shape, *shape))


def _folded(params, keys, data):
    pairs = np.broadcast(keys, data)
    found = [_new_keys([key, int(n) % 2**63], 1)[0] for key, n in pairs]
    return np.array([*found, None], object)[:-1].reshape(pairs.shape)


def _seeded(params, seeds):
    return np.array([*(int(s) % 2**63 for s in seeds.flat), None], object)[:-1].reshape(seeds.shape)


def _scan(params, values):
    body, num_consts, num_carry = params["jaxpr"], params["num_consts"], params["num_carry"]
    consts, carry = values[:num_consts], values[num_consts : num_consts + num_carry]
    inputs = [_array(v) for v in values[num_consts + num_carry :]]
    rows = range(params["length"])
    outputs = []
    for row in reversed(rows) if params["reverse"] else rows:
        found = evaluate(body, *consts, *carry, *(v[row] for v in inputs))
        carry = found[:num_carry]
        outputs.append(found[num_carry:])
    outputs = outputs[::-1] if params["reverse"] else outputs
    return [*carry, *(np.stack(column) for column in zip(*outputs, strict=True))]


def _while(params, values):
    first, second = params["cond_nconsts"], params["body_nconsts"]
    of_cond, of_body = values[:first], values[first : first + second]
    carry = values[first + second :]
    while np.any(going := evaluate(params["cond_jaxpr"], *of_cond, *carry)[0]):
        moved = evaluate(params["body_jaxpr"], *of_body, *carry)
        carry = [_moved(going, new, _array(old)) for new, old in zip(moved, carry, strict=True)]
    return carry


def _moved(going, new, old):
    """Of loops side by side, those that go on."""
    return np.where(going.reshape(going.shape + (1,) * (new.ndim - going.ndim)), new, old)


def _cond(params, values):
    which = min(max(int(values[0]), 0), len(params["branches"]) - 1)
    return evaluate(params["branches"][which], *values[1:])


LOOPS = {"scan": _scan, "while": _while, "cond": _cond}
OF_PARAMS = {
    "argmax": _first_of(np.argmax),
    "argmin": _first_of(np.argmin),
    "bitcast_convert_type": _cast,
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda params, *values: np.concatenate(values, params["dimension"]),
    "convert_element_type": lambda params, value: value.astype(params["new_dtype"]),
    "cummax": _cumulative(np.maximum.accumulate),
    "cumsum": _cumulative(np.cumsum),
    "dynamic_slice": _dynamic_slice,
    "gather": _gathered,
    "integer_pow": lambda params, value: value ** params["y"],
    "iota": _iota,
    "pad": _padded,
    "random_bits": _bits,
    "random_fold_in": _folded,
    "random_seed": _seeded,
    "random_split": _keys_split,
    "reduce_and": _over_axes(np.all),
    "reduce_max": _over_axes(np.max),
    "reduce_min": _over_axes(np.min),
    "reduce_or": _over_axes(np.any),
    "reduce_prod": _over_axes(np.prod),
    "reduce_sum": _over_axes(np.sum),
    "reshape": _reshaped,
    "rev": lambda params, value: np.flip(value, params["dimensions"]),
    "scatter": _scattered(add=False),
    "scatter-add": _scattered(add=True),
    "slice": _sliced,
    "split": _split,
    "squeeze": lambda params, value: value.squeeze(tuple(map(int, params["dimensions"]))),
    "transpose": lambda params, value: value.transpose(params["permutation"]),
}
