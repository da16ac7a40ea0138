"""What diagnostics say of trees, whose support does not tell their largest value."""

import numpy as np
import pytest

pyro = pytest.importorskip("pyro")
torch = pytest.importorskip("torch")
dist = pytest.importorskip("pyro.distributions")
diagnostics = pytest.importorskip("pyro_dvae.diagnostics")


def test_the_edges_of_a_tree_lead_to_so_many_nodes():
    """All of three nodes are counted, and none is said to be the largest that was drawn."""

    def model(x):
        edges = pyro.sample("edges", dist.SpanningTree(torch.tensor([0.1, 0.2, 0.7])))
        pyro.sample("x", dist.Normal(edges.reshape(-1)[0].float(), 1.0), obs=x)

    def guide(x):
        pyro.sample("edges", dist.SpanningTree(torch.tensor([0.1, 0.2, 0.7])))

    usage = diagnostics.code_usage((model, guide), torch.tensor(0.5), num_draws=30)
    assert usage["edges"].counts.shape[-1] == 3
    assert np.sum(usage["edges"].counts) == 30 * 4
    assert "no largest" not in str(usage)
