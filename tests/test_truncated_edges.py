"""Truncated posteriors where a model, a guide or an argument is not what they are of."""

import pytest
from truncated_zoo import CAUSES_DATA, CAUSES_PROGRAM, SITES_PROGRAM, truncated


def loss(shim, *args, **options):
    return shim.Sets(*args, **options).loss(truncated(shim))


def silent_model(ppl, data):
    """The sites of `causes_model`, and no data."""
    with ppl.plate("data", len(data["x"])):
        ppl.sample("z", ppl.dist.Bernoulli(logits=ppl.param("prior", data)).to_event(1))


def test_a_model_without_data_has_no_posterior(shim):
    with pytest.raises(ValueError, match=r"the model observes nothing in this call.* Pass the da"):
        loss(shim, CAUSES_PROGRAM, 5, model=silent_model)


def test_chances_of_one_are_of_binary_latents(shim):
    message = r"`probs` are those of binary latents; the model has latents of \[2, 3\] codes\. Leav"
    with pytest.raises(ValueError, match=message):
        loss(shim, SITES_PROGRAM, 4, probs=0.5)


def test_a_flip_by_the_slope_is_of_the_codes_0_and_1(thrifty_shim):
    shim = thrifty_shim
    sets = shim.Sets(SITES_PROGRAM, 4)
    evolve = shim.module("infer").informed_flip(2)
    message = r"needs latents of the codes 0 and 1.*got cardinalities \(2, 2, 3\)\. Use ops\.ev"
    with pytest.raises(ValueError, match=message):
        sets.step(truncated(shim, evolve=evolve))


def test_a_guide_that_proposes_has_the_sites(shim):
    sets = shim.Sets(CAUSES_PROGRAM, 5)
    evolve = shim.module("infer").draws_of(lambda data: None, 3)
    message = r"discrete sites \['z'\]; it has no \['z'\]"
    with pytest.raises(ValueError, match=message):
        sets.step(truncated(shim, evolve=evolve))


def test_other_data_need_sets_to_start_from(shim):
    guide = shim.Sets(CAUSES_PROGRAM, 5).guide
    given = () if shim.__name__ == "pyro_shim" else (None, {})
    with pytest.raises(ValueError, match="starts from the states of this guide, which has none"):
        guide.for_data(*given, CAUSES_DATA)
