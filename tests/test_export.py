"""The way out of training, in both packages, with a prior of classes in the model."""

import importlib
import io
import re

import numpy as np
import pytest
from quantized import B, D, L, V, X

LABELS = np.arange(B) % 3


@pytest.fixture(params=["pyro", "numpyro"])
def name(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return request.param


def parts(name):
    rooms = "nets", "models", "guides"
    nets, models, guides = (importlib.import_module(f"{name}_dvae.{room}") for room in rooms)
    transformer = nets.CausalTransformer(L, V, embed_dim=4, cross_attention=True)
    prior = models.AutoregressivePrior(transformer, num_classes=3)
    codebook = nets.Codebook(V, D, decay=0.9)
    decoder = nets.CodebookDecoder(codebook, nets.MLPDecoder(L * D, None, (3, 2), hidden=()))
    model = models.DiscreteVAE(decoder, prior, models.GaussianLikelihood(learn="closed_form"))
    return model, guides.VectorQuantizedGuide(nets.MLPEncoder((3, 2), L, D, hidden=()), codebook)


def train(name, num_steps=3):
    """A result, and a key for what draws."""
    fit = importlib.import_module(f"{name}_dvae.fit").fit
    loss = importlib.import_module(f"{name}_dvae.infer").VQ_ELBO()
    options = {"num_steps": num_steps, "progress": False}
    if name == "pyro":
        import pyro
        import torch

        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = pyro.infer.SVI(*parts(name), pyro.optim.Adam({"lr": 0.01}), loss)
        data = torch.asarray(X), None, None, None, torch.asarray(LABELS)
        return fit(svi, *data, **options), ()
    import jax
    import numpyro
    from quick_numpyro import QuickSVI

    svi = QuickSVI(*parts(name), numpyro.optim.Adam(0.01), loss)
    return fit(jax.random.key(0), svi, X, None, None, None, LABELS, **options), (jax.random.key(1),)


@pytest.mark.thrifty
def test_out_and_back(name, tmp_path):
    export = importlib.import_module(f"{name}_dvae.fit")
    result, key = train(name)
    codes = export.save_codes(tmp_path / "codes.npz", result, X, LABELS, batch_size=16)
    assert codes.shape == (B, L)
    assert len(np.unique(codes)) > 1
    with np.load(tmp_path / "codes.npz") as saved:
        np.testing.assert_array_equal(saved["codes"], codes)
        np.testing.assert_array_equal(saved["labels"], LABELS)
    means = export.reconstruct_data(result, codes, batch_size=16)
    assert means.shape == X.shape
    same = (codes[:, None] == codes).all(-1)  # equal codes, equal means
    distances = np.abs(means[:, None] - means).max((-2, -1))
    assert distances[same].max() < 1e-5 < distances[~same].min()

    export.save_weights(tmp_path / "weights", result)
    again = export.load_weights(tmp_path / "weights", parts(name))
    np.testing.assert_array_equal(export.encode_data(again, X), codes)
    np.testing.assert_allclose(export.reconstruct_data(again, codes), means, atol=1e-5)
    assert export.sample_data(*key, again, 5, labels=LABELS[:5]).shape == (5, 3, 2)
    with pytest.raises(ValueError, match="`labels` must be given"):
        export.sample_data(*key, again, 5)


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]


@pytest.mark.thrifty
def test_only_whole_files_of_weights_are_read(name, tmp_path):
    export, path = importlib.import_module(f"{name}_dvae.fit"), tmp_path / "weights"
    result, _ = train(name, num_steps=1)
    export.save_weights(path, result)
    content, empty = path.read_bytes(), io.BytesIO()
    np.savez(empty, codes=X)
    spoilt = [flipped(content, len(content) // n) for n in (2, 3, 4)]
    for wrong in (*spoilt, content[:-1], content[:50], b"hello", b"", empty.getvalue()):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"`path`: .* cannot be read as weights: .* copy in"):
            export.load_weights(path, parts(name))


def test_weights_of_other_networks_replace_none(tmp_path):
    """Neither the model, whose own would fit, nor what fits of a guide."""
    torch, export = importlib.import_module("torch"), importlib.import_module("pyro_dvae.fit")
    model, guide = parts("pyro")
    values = {"model": model.state_dict(), "guide": guide.state_dict()}
    before = [value.clone() for state in values.values() for value in state.values()]
    last = list(values["guide"])[-1]
    for wrong in ({**values["guide"], last: torch.zeros(7)}, {}, 3):
        other = {name: value + 1 for name, value in values["model"].items()}
        torch.save({"model": other, "guide": wrong}, tmp_path / "weights")
        with pytest.raises(ValueError, match="weights: is of other networks than these"):
            export.load_weights(tmp_path / "weights", (model, guide))
        after = [value for net in (model, guide) for value in net.state_dict().values()]
        assert all(map(torch.equal, before, after))


def test_a_network_without_shapes_stays_so_if_the_other_is_refused(tmp_path):
    torch, export = importlib.import_module("torch"), importlib.import_module("pyro_dvae.fit")
    make, path = torch.nn.Linear, tmp_path / "weights"
    export.save_weights(path, (make(3, 2), make(3, 2)))
    lazy = torch.nn.LazyLinear(2)
    with pytest.raises(ValueError, match="weights: is of other networks than these"):
        export.load_weights(path, (lazy, make(3, 4)))
    assert torch.nn.parameter.is_lazy(lazy.weight)
    assert export.load_weights(path, (lazy, make(3, 2))).model.weight.shape == (2, 3)


def test_state_that_a_network_refuses_or_cannot_hold_replaces_none(tmp_path):
    """An error of its own, keys that are numbers, and numbers that its dtype would cut off."""
    torch, export = importlib.import_module("torch"), importlib.import_module("pyro_dvae.fit")
    path = tmp_path / "weights"

    class Guide(torch.nn.Linear):
        def __init__(self, version, dtype=torch.float32):
            super().__init__(2, 2)
            self.version = version
            self.register_buffer("counts", torch.tensor([1.7, 2.3]).to(dtype))

        def get_extra_state(self):
            return {self.version: 1}

        def set_extra_state(self, state):
            state[self.version]

    def refused(guide, match):
        model = torch.nn.Linear(2, 2)
        before = [value.clone() for net in (model, guide) for value in net.parameters()]
        with pytest.raises(ValueError, match=f"weights: is of other networks than .*{match}"):
            export.load_weights(path, (model, guide))
        after = [value for net in (model, guide) for value in net.parameters()]
        assert all(map(torch.equal, before, after))

    saved = torch.nn.Linear(2, 2), Guide("v1")
    export.save_weights(path, saved)
    refused(Guide("v2"), "v2")
    refused(
        Guide("v1", torch.int64), r"'counts' is of torch\.float32 in the file, and of torch.int"
    )
    wider = torch.nn.Linear(2, 2).double(), Guide("v1")
    export.load_weights(path, wider)
    assert torch.equal(wider[0].weight.float(), saved[0].weight)
    torch.save({"model": saved[0].state_dict(), "guide": {1: torch.ones(2)}}, path)
    refused(Guide("v1"), "startswith")


def test_weights_of_functions_are_those_of_the_store(tmp_path):
    """They are refused, and what the words say to do brings them back."""
    torch, pyro = importlib.import_module("torch"), importlib.import_module("pyro")
    export, path = importlib.import_module("pyro_dvae.fit"), tmp_path / "weights"
    diagnostics = importlib.import_module("pyro_dvae.diagnostics")
    auto, loss = (importlib.import_module(f"pyro_dvae.{n}") for n in ("guides", "infer"))
    dist, x = pyro.distributions, torch.tensor([0.5, -1.0])

    def model(x):
        means = pyro.param("means", torch.tensor([1.0, -1.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(means[z], 1.0), obs=x)

    pyro.clear_param_store()
    guide, optim = auto.AutoDiscrete(model), pyro.optim.Adam({"lr": 0.1})
    svi = pyro.infer.SVI(model, guide, optim, loss.Exact_ELBO())
    result = export.fit(svi, x, num_steps=3, progress=False)
    with pytest.raises(ValueError, match=r"`save_weights` .* the model is a function\. Pyro's "):
        export.save_weights(path, result)
    with pytest.raises(ValueError, match=r"`load_weights` .* the guide is a function\. Pyro's "):
        export.load_weights(path, (torch.nn.Linear(1, 1), model))
    pyro.get_param_store().save(path)  # as the message says
    pyro.clear_param_store()
    pyro.get_param_store().load(path)
    again = diagnostics.posterior_gap((model, auto.AutoDiscrete(model)), x)
    np.testing.assert_allclose(again.gap, diagnostics.posterior_gap(result, x).gap, atol=1e-6)


def test_a_pair_without_parameters_is_not_saved(tmp_path):
    export = importlib.import_module("numpyro_dvae.fit")
    with pytest.raises(ValueError, match="`result` must be what `fit` or `load_weights` returned"):
        export.save_weights(tmp_path / "weights", parts("numpyro"))
    assert not list(tmp_path.iterdir())


@pytest.mark.thrifty
def test_labels_and_data_that_do_not_fit_are_named(name, tmp_path):
    export, path = importlib.import_module(f"{name}_dvae.fit"), tmp_path / "codes.npz"
    result, key = train(name, num_steps=1)
    for labels in (LABELS[:7], LABELS[:, None], LABELS.astype(object)):
        with pytest.raises(ValueError, match=f"`labels` must be one for each of the {B} data"):
            export.save_codes(path, result, X, labels)
        assert not path.exists()
    export.save_codes(path, result, X, LABELS.astype(str))
    with np.load(path, allow_pickle=False) as saved:
        np.testing.assert_array_equal(saved["labels"], LABELS.astype(str))
        codes = saved["codes"]
    for same in (X.astype(">f4"), X[::-1].copy()[::-1]):
        np.testing.assert_array_equal(export.encode_data(result, same), codes)
    means = export.reconstruct_data(result, codes)
    backwards = export.reconstruct_data(result, codes.astype(">i4")[::-1])
    np.testing.assert_allclose(backwards[::-1], means, atol=1e-5)
    for call, data in ((export.encode_data, X), (export.reconstruct_data, codes)):
        with pytest.raises(ValueError, match="needs at least one row"):
            call(result, data[:0])
        with pytest.raises(ValueError, match="`batch_size` must be at least 1; got 0"):
            call(result, data, batch_size=0)
    models, nets = (importlib.import_module(f"{name}_dvae.{room}") for room in ("models", "nets"))
    decoder = nets.MLPDecoder(L, V, (3, 2), hidden=())
    model = models.DiscreteVAE(decoder, models.UniformPrior(L, V), models.GaussianLikelihood())
    with pytest.raises(ValueError, match=r"`labels` are for a prior of classes.*UniformPrior"):
        export.sample_data(*key, (model, result.guide), 3, labels=LABELS[:3])
    with pytest.raises(ValueError, match="`num_data` must be at least 1; got 0"):
        export.sample_data(*key, result, 0, labels=LABELS[:0])


@pytest.mark.thrifty
def test_data_without_codes_are_named(name):
    export = importlib.import_module(f"{name}_dvae.fit")
    result, _ = train(name, num_steps=1)
    spoilt = np.array(X)
    spoilt[[2, 5]] = np.nan
    with pytest.raises(ValueError, match=r"NaN for 2 data, the first of them row 2, so they"):
        export.encode_data(result, spoilt)


@pytest.mark.thrifty
def test_what_is_not_a_datum_in_each_row_is_named(name):
    """Of as many values as latents, real numbers would be taken for relaxed codes of one datum."""
    export, models, nets = (
        importlib.import_module(f"{name}_dvae.{room}") for room in ("fit", "models", "nets")
    )
    result, _ = train(name, num_steps=1)
    codes = export.encode_data(result, X)
    for call, data, some in (
        (export.encode_data, X, "x"),
        (export.reconstruct_data, codes, "codes"),
    ):
        one = call(result, data[:1])
        assert len(one) == 1
        message = rf"`{some}` must have a datum in each row.*, give {some}\[None\]"
        with pytest.raises(ValueError, match=message):
            call(result, data[0])
    codebook = nets.Codebook(L, D)
    decoder = nets.CodebookDecoder(codebook, nets.MLPDecoder(L * D, None, (3, 2), hidden=()))
    square = models.DiscreteVAE(decoder, models.UniformPrior(L, L), models.GaussianLikelihood())
    for model in (result.model, square):
        with pytest.raises(ValueError, match=r"`codes` must be integers \(N, L\), or .*astype"):
            export.reconstruct_data((model, result.guide), np.zeros((L, L), np.float32))


def test_a_guide_without_an_encoder_is_named(name):
    export, infer = (importlib.import_module(f"{name}_dvae.{room}") for room in ("fit", "infer"))
    model, _ = parts(name)
    with pytest.raises(ValueError, match="needs a guide with an encoder"):
        export.encode_data((model, infer.TruncatedGuide(model, 4)), X)


def test_a_model_without_a_decoder_is_named(name):
    """A function and a class of one's own; the words say how to draw of it."""
    room = importlib.import_module(f"{name}_dvae.fit")
    host = importlib.import_module(name)
    key = () if name == "pyro" else (importlib.import_module("jax").random.key(0),)

    def model(x):
        host.sample("x", host.distributions.Normal(0.0, np.float32(1.0) + 0 * x), obs=x)

    class Model:
        __call__ = staticmethod(model)

    for each in (model, Model()):
        calls = [lambda p: room.reconstruct_data(p, np.zeros((2, 1), int))]
        calls.append(lambda p: room.sample_data(*key, p, 3))
        for call in calls:
            with pytest.raises(ValueError, match="needs a model with `prior` and `recon") as error:
                call((each, model))
            with pytest.raises(ValueError, match="`result` must be a FitResult, or a pair"):
                call((each,))
        words = re.search(r"by the prior they are (\S.*)\.$", str(error.value)).group(1)
        names = {"pyro": None, "numpyro": None, "model": each, "result": room.FitResult}
        names |= {name: host, "data": (host_array(name),), "rng_key": (*key, None)[0]}
        names["result"] = room.FitResult(each, each, {}, np.zeros(0))
        assert eval(words, names)["x"].shape == (64, 2)


def host_array(name):
    module = importlib.import_module("torch" if name == "pyro" else "jax.numpy")
    return module.asarray(np.zeros(2, np.float32))


@pytest.mark.thrifty
def test_the_prior_is_of_the_class(lab):
    models, nets = lab.module("models"), lab.module("nets")
    transformer = nets.CausalTransformer(L, V, embed_dim=4, cross_attention=True)
    prior = models.AutoregressivePrior(transformer, num_classes=3)
    decoder = nets.MLPDecoder(L, V, (3, 2), hidden=())
    model = models.DiscreteVAE(decoder, prior, models.GaussianLikelihood())
    x = lab.asarray(np.tile(X[:1], (3, 1, 1)))
    given = {"condition": {"z": np.zeros((3, L), int)}}
    apart = lab.sites(model, x, labels=lab.asarray(np.arange(3)), **given)["z"].log_prob
    assert len(np.unique(np.round(apart, 6))) == 3
    alike = lab.sites(model, x, labels=lab.asarray(np.ones(3, int)), **given)["z"].log_prob
    np.testing.assert_allclose(alike, alike[0], rtol=1e-6)
    with pytest.raises(ValueError, match=r"`labels` must be one for each of 3 data; got"):
        lab.sites(model, x, labels=lab.asarray(np.zeros(2, int)))
