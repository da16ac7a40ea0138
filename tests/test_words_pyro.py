"""Packed states are worked on as codes would be."""

from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from pyro_dvae.infer import Truncated_ELBO, TruncatedGuide  # noqa: E402
from pyro_dvae.infer.truncated import estep  # noqa: E402
from pyro_dvae.ops import sets  # noqa: E402
from pyro_dvae.ops.sets import chain, flip, select  # noqa: E402
from pyro_dvae.ops.sets.hashing import _GOLDEN, are_hashes, hash_words  # noqa: E402
from pyro_dvae.ops.sets.packing import as_numbers, keep_latents, places_of  # noqa: E402
from pyro_dvae.ops.sets.states import change_latents  # noqa: E402

SPACES = st.sampled_from(
    [
        (2,) * 5,
        (2,) * 32,
        (2,) * 33,
        (2,) * 64,
        (2,) * 70,
        (3, 2, 1, 5, 4),
        (7,) * 11,
        (2**16, 2**16),
        (2**31, 3, 300),
        (2,) * 31 + (5,) * 10,
    ]
)


def drawn(cardinalities, seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(v, shape, generator=generator) for v in cardinalities]
    return torch.stack(columns, -1).to(sets.code_dtype(cardinalities))


def test_words_by_hand():
    """Latents of 2, 1, 0 and 3 bits: 38 is 2 + 1 * 4 + 4 * 8; 64 bits are one number."""
    cardinalities = (3, 2, 1, 5)
    words = torch.tensor([[[38]], [[25]]], dtype=torch.int32)
    assert hash_words(words, cardinalities).tolist() == [[38], [25]]
    assert are_hashes(cardinalities)
    assert not are_hashes((2**31, 3))  # the second latent begins a word, one bit further
    kept = torch.tensor([[True, False, True, False]])
    assert keep_latents(words, kept, cardinalities).tolist() == [[[2]], [[1]]]
    hashes = change_latents(
        words[:, 0], torch.tensor([38, 25]), torch.tensor([1, 1]), cardinalities
    )
    assert words.tolist() == [[[34]], [[29]]]
    assert hashes.tolist() == [34, 29]
    pairs = torch.tensor([[5, 1], [-1, 0]], dtype=torch.int32)
    assert as_numbers(pairs).tolist() == [2**32 + 5, 2**32 - 1]
    assert as_numbers(pairs.T) is None  # no more than columns of them lie together
    places = places_of(cardinalities, pairs.device)
    assert [each.tolist() for each in places] == [[0] * 4, [0, 2, 3, 3], [3, 1, 0, 7]]


@given(SPACES, st.integers(0, 1000), st.booleans())
def test_hashes_of_words_are_those_of_codes(cardinalities, seed, transposed):
    codes = drawn(cardinalities, seed, 6, 3)
    table = sets.zobrist_table(cardinalities)
    words = sets.pack(codes, cardinalities)
    words = words.transpose(0, 1).contiguous().transpose(0, 1) if transposed else words
    found = hash_words(words, cardinalities)
    assert torch.equal(found, sets.hash_states(codes, table))


@given(SPACES, st.integers(0, 1000), st.booleans())
def test_one_latent_changes_and_the_hash_with_it(cardinalities, seed, hashed):
    before = drawn(cardinalities, seed, 20)
    free = torch.tensor([h for h, v in enumerate(cardinalities) if v > 1])
    latents = free[torch.randint(len(free), (20,), generator=torch.Generator().manual_seed(seed))]
    table = sets.zobrist_table(cardinalities)
    words = sets.pack(before, cardinalities)
    hashes = sets.hash_states(before, table) if hashed else None
    hashes = change_latents(words, hashes, latents, cardinalities)
    after = sets.unpack(words, cardinalities)
    changed = (after != before).nonzero()
    assert torch.equal(changed, torch.stack([torch.arange(20), latents], -1))
    assert (after.long() < torch.tensor(cardinalities)).all()
    assert (hashes is None) == (not hashed)
    if hashed:
        assert torch.equal(hashes, sets.hash_states(after, table))


@given(SPACES, st.integers(0, 1000))
def test_latents_that_are_not_kept_have_code_zero(cardinalities, seed):
    codes = drawn(cardinalities, seed, 6, 3)
    kept = drawn((2,) * len(cardinalities), seed + 1, 3).bool()
    words = keep_latents(sets.pack(codes, cardinalities), kept, cardinalities)
    expected = torch.where(kept, codes, torch.zeros_like(codes))
    assert torch.equal(sets.unpack(words, cardinalities), expected)


@given(SPACES, st.integers(0, 1000), st.booleans())
def test_states_are_taken_as_codes_are(cardinalities, seed, transposed):
    codes = drawn(cardinalities, seed, 6, 3)
    words = sets.pack(codes, cardinalities)
    words = words.transpose(0, 1).contiguous().transpose(0, 1) if transposed else words
    index = torch.randint(6, (4, 3), generator=torch.Generator().manual_seed(seed))
    found = sets.unpack(sets.take_states(words, index), cardinalities)
    assert torch.equal(found, codes.gather(0, index[..., None].expand(-1, -1, codes.shape[-1])))


def test_hashes_that_keys_cannot_tell_apart():
    """Keys hold the high bits of a product; two of these hashes share them and differ below."""
    inverse = pow(-_GOLDEN % 2**64, -1, 2**64)
    inverse = -inverse % 2**64  # of _GOLDEN, which is negative
    products = [(7 << 40) + low for low in (0, 1 << 20, 0, 5, 1 << 20)]
    hashes = [(product * inverse) % 2**64 for product in products]
    signed = torch.tensor([h - 2**64 if h >= 2**63 else h for h in hashes])
    others = torch.arange(5)
    found = sets.first_occurrences(torch.stack([signed, others, signed.flip(0)], 1))
    expected = [[True, True, False, True, False], [True] * 5, [True, True, True, False, False]]
    assert found.T.tolist() == expected


@pytest.mark.parametrize("num_latents", [20, 64, 70])  # hashes of a word, of two, of their own
def test_an_e_step_is_the_same_with_hashes_of_their_own(monkeypatch, num_latents):
    weight = torch.randn(num_latents, 3, generator=torch.Generator().manual_seed(0))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((num_latents,), 0.2)).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, 1.0).to_event(1), obs=x)

    def evolved():
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        x = torch.randn(5, 3)
        guide = TruncatedGuide(model, 12)
        elbo = Truncated_ELBO(chain(select(4), flip(5)), generations=3)
        bounds = []
        for _ in range(6):
            with torch.no_grad():  # a loss without a gradient leaves the sets alone
                bounds.append(float(elbo.loss(model, guide, x)))
            elbo.e_step(model, guide, x)
        return guide.words, bounds

    found, bounds = evolved()
    monkeypatch.setattr(estep, "are_hashes", lambda _: False)
    expected, _ = evolved()
    assert torch.equal(found, expected)
    assert all(after <= before + 1e-4 for before, after in pairwise(bounds))
    assert bounds[-1] < bounds[0] - 1.0
    for members in found:
        assert len(torch.unique(members, dim=0)) == len(members)
