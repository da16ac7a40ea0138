"""Vector quantisation as a guide, a decoder and a loss, in both packages.

Encoder and decoder are linear, so that loss and gradients are known in closed form.
"""

import numpy as np
import pytest
from quantized import SHAPE, TABLE, B, D, L, V, X, pair

SLOW = pytest.mark.slow


def linear_oracle(params, table, commitment):
    """Loss and gradients of the linear model, by hand: van den Oord et al., equation 3.

    A mean of squares over L D channels against one over all pixels, of which half is in the loss.
    """
    in_weight, in_bias, out_weight, out_bias = (p.astype(np.float64) for p in params[:4])
    x = X.reshape(B, -1).astype(np.float64)
    inputs = (x @ in_weight + in_bias).reshape(B, L, D)
    codes = ((inputs[..., None, :] - table) ** 2).sum(-1).argmin(-1)
    vectors = table[codes].astype(np.float64)
    flat = vectors.reshape(B, L * D)
    error = flat @ out_weight + out_bias - x
    constant = 0.5 * np.log(2 * np.pi) * x.size + B * L * np.log(V)
    weight = x[0].size / 2 / (L * D)
    back = (error @ out_weight.T).reshape(B, L, D)
    back = back + weight * 2 * commitment * (inputs - vectors)
    back = back.reshape(B, -1)
    by_row = np.zeros((V, D))
    np.add.at(by_row, codes, weight * 2 * (vectors - inputs))
    grads = [x.T @ back, back.sum(0), flat.T @ error, error.sum(0), by_row]
    return 0.5 * (error**2).sum() + constant, grads, inputs, codes


@pytest.mark.parametrize(("kind", "commitment"), [("gradient", 0.25), ("moving", 0.0)])
def test_loss_and_gradients_in_closed_form(kit, kind, commitment):
    run = kit.start(*pair(kit, kind, gradient="straight_through"))
    found = kit.evaluate(run, kit.module("infer").VQ_ELBO(commitment=commitment))
    loss, grads, _, _ = linear_oracle(found.params, TABLE, commitment)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert len(found.grads) == (5 if kind == "gradient" else 4)
    for own, expected in zip(found.grads, grads, strict=False):
        np.testing.assert_allclose(own, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.thrifty
def test_the_table_follows_its_inputs(kit):
    far = TABLE + np.float32(100) * (np.arange(V) == 0)[:, None]
    run = kit.start(*pair(kit, "moving", far, decay=0.0, min_count=0.5))
    found = kit.evaluate(run, kit.module("infer").VQ_ELBO())
    _, _, inputs, codes = linear_oracle(found.params, far, 0.25)
    assert (codes != 0).all()
    table = np.asarray(found.table)
    for code in np.unique(codes):
        expected = inputs[codes == code].mean(0)
        np.testing.assert_allclose(table[code], expected, rtol=1e-3, atol=1e-4)
    assert np.abs(inputs.reshape(-1, D) - table[0]).max(-1).min() < 1e-5  # it restarts at one


@pytest.mark.thrifty
@pytest.mark.parametrize("kind", ["gradient", pytest.param("scalar", marks=SLOW)])
def test_the_value_is_the_elbo_by_enumeration(kit, kind):
    infer = kit.module("infer")
    run = kit.start(*pair(kit, kind))
    loss = kit.loss(run, infer.VQ_ELBO(commitment=3.0))
    assert loss == pytest.approx(kit.loss(run, infer.Exact_ELBO()), rel=1e-5)


@pytest.mark.thrifty
@pytest.mark.parametrize("kind", [pytest.param("gradient", marks=SLOW), "moving", "scalar"])
def test_training_and_the_model_of_integer_codes(kit, kind):
    model, guide = pair(kit, kind, table=None if kind == "moving" else TABLE)
    run = kit.start(model, guide, lr=0.02)
    elbo = kit.module("infer").VQ_ELBO()
    losses = kit.train(run, elbo, 60)
    assert losses[-1] < losses[0] - 0.2 * B
    found = kit.info(run, elbo)
    assert float(found.elbo) == pytest.approx(-losses[-1] / B, rel=1e-4)
    assert float(found.rate) == pytest.approx(L * np.log2(guide.codebook.num_codes), rel=1e-4)
    assert (float(found.distance) == 0) == (kind == "scalar")
    if kind == "moving":
        value = kit.loss(run, elbo)
        assert kit.loss(run, elbo) == value  # evaluation does not move the averages
    codes, means = kit.codes_and_means(run)
    assert len(np.unique(codes)) > 1
    error = 0.5 * ((means - X) ** 2).sum() + 0.5 * np.log(2 * np.pi) * X.size
    expected = error + B * L * np.log(guide.codebook.num_codes)
    assert expected == pytest.approx(losses[-1], rel=0.05)  # before and after the last step


@SLOW
def test_diagnostics_see_the_table_as_it_was_trained(kit):
    run = kit.start(*pair(kit, "moving", table=None), lr=0.02)
    kit.train(run, kit.module("infer").VQ_ELBO(), 5)
    _, means = kit.codes_and_means(run)
    error = 0.5 * ((means - X) ** 2).sum((1, 2)) + 0.5 * np.log(2 * np.pi) * X[0].size
    expected = -error - L * np.log(V)
    np.testing.assert_allclose(kit.elbos(run, X[:4]), expected[:4], rtol=1e-4)


def test_another_guide_is_named(kit):
    nets, guides, infer = map(kit.module, ("nets", "guides", "infer"))
    model, _ = pair(kit, "gradient")
    guide = guides.IndependentGuide(nets.MLPEncoder(SHAPE, L, V, hidden=()))
    with pytest.raises(ValueError, match="needs a guide that quantises vectors"):
        kit.loss(kit.start(model, guide), infer.VQ_ELBO())


def test_a_width_that_does_not_fit_is_named(kit):
    nets, guides, infer = map(kit.module, ("nets", "guides", "infer"))
    model, guide = pair(kit, "gradient")
    guide = guides.VectorQuantizedGuide(nets.MLPEncoder(SHAPE, L, D + 1), guide.codebook)
    with pytest.raises(ValueError, match=r"as wide as the codebook.*, 3\); got \(.*, 4\)"):
        kit.loss(kit.start(model, guide), infer.VQ_ELBO())


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((1, 3), {}, "`num_codes` must be at least 2; got 1"),
        ((5, 3), {"decay": 1.0}, "`decay` must be in"),
        ((5, 3), {"min_count": 0.0}, "`min_count` must be positive"),
        ((4, 3), {"table": TABLE}, r"`table` must have shape \(4, 3\); got \(5, 3\)"),
    ],
)
def test_bad_codebooks_are_named(kit, arguments, options, message):
    options = {k: kit.asarray(v) if k == "table" else v for k, v in options.items()}
    with pytest.raises(ValueError, match=message):
        kit.module("nets").Codebook(*arguments, **options)


def test_bad_levels_and_commitments_are_named(kit):
    for levels in [(1, 5), ()]:
        with pytest.raises(ValueError, match="`levels` must be numbers of at least 2"):
            kit.module("nets").FiniteScalars(levels)
    with pytest.raises(ValueError, match="`commitment` must be finite"):
        kit.module("infer").VQ_ELBO(commitment=-1.0)


def test_codes_mean_the_same_to_guide_and_model(kit):
    models, infer = map(kit.module, ("models", "infer"))
    model, guide = pair(kit, "gradient")
    other = pair(kit, "gradient")[1]
    with pytest.raises(ValueError, match="`codebook` of the guide is another than that of the"):
        kit.loss(kit.start(model, other), infer.VQ_ELBO())
    num_codes = guide.codebook.num_codes
    with pytest.raises(ValueError, match=f"`prior` is of {num_codes + 1} codes, but .*{num_codes}"):
        models.DiscreteVAE(model.decoder, models.UniformPrior(L, num_codes + 1), model.likelihood)


def test_rules_that_say_the_same_are_one_codebook(kit):
    check = kit.module("infer.quantization").check_codebooks
    model, guide = pair(kit, "scalar")
    levels = guide.codebook.levels
    guide.codebook = kit.module("nets").FiniteScalars(levels)
    check(model, guide)
    guide.codebook = kit.module("nets").FiniteScalars(levels, scale=0.5)
    with pytest.raises(ValueError, match="`codebook` of the guide is another"):
        check(model, guide)
