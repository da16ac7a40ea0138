"""What are documents about? Topics of their words, by three losses.

Each word is of a latent topic (Hofmann, 1999). Half of a new document tells its shares of topics,
by which the other half is predicted. Documents are made; `main("ap_bow.npz")` reads some.
"""

import sys
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from sklearn.decomposition import LatentDirichletAllocation
from torch import Tensor

from pyro_dvae.diagnostics import discrete_posterior
from pyro_dvae.fit import fit
from pyro_dvae.guides import AutoDiscrete
from pyro_dvae.infer import DAPS_ELBO, Exact_ELBO, Reinforce_ELBO

MADE = np.random.default_rng(1).dirichlet(np.full(40, 0.1), size=4)  # topics of made documents


def documents(path: str | None, size: int = 40) -> np.ndarray:
    """Words as numbers, (documents, size): made, or of articles, of the 500 first words."""
    rng = np.random.default_rng(0)
    if path is None:
        return np.array([rng.choice(40, size, p=p) for p in rng.dirichlet([0.3] * 4, 100) @ MADE])
    data = np.load(path)
    ends = np.cumsum(data["data"])[data["indptr"][1:-1] - 1]
    rows = (row[row < 500] for row in np.split(np.repeat(data["indices"], data["data"]), ends))
    return np.array([rng.permutation(row)[:size] for row in rows if len(row) >= size][:400], int)


def perplexity(topics: np.ndarray, words: np.ndarray) -> float:
    """Of the second half of the words of each document, given the first."""
    seen, hidden = (topics.T[half] for half in np.split(words, 2, axis=1))  # (N, words, topics)
    shares = 1 / len(topics)
    for _ in range(50):  # expectation maximisation, with half a word more for each topic
        counts = (seen * shares / (seen * shares).sum(-1, keepdims=True)).sum(1, keepdims=True)
        shares = (counts + 0.5) / (counts + 0.5).sum(-1, keepdims=True)
    return float(np.exp(-np.log((hidden * shares).sum(-1)).mean()))


def model(words: Tensor, start: Tensor) -> None:
    """Words of documents, (documents, words), of topics that start at these logits."""
    topics = pyro.param("topics", start.clone()).log_softmax(-1)
    shares = pyro.param("shares", torch.zeros(len(words), 1, len(start))).log_softmax(-1)
    pyro.factor("prior", (topics.sum() + shares.sum()) / len(start))  # Dirichlet's
    with pyro.plate("documents", len(words), dim=-2), pyro.plate("words", words.shape[1], dim=-1):
        topic = pyro.sample("topic", dist.Categorical(logits=shares))
        pyro.factor("word", topics[topic, words])  # no distribution over all words at each


def main(path: str | None = None, num_steps: int = 300) -> dict[str, float]:
    """The perplexity of words held out, by each loss and by scikit-learn."""
    words, count = documents(path), 4 if path is None else 10
    train, new = np.split(words, [len(words) * 3 // 4])
    bags = np.array([np.bincount(line, minlength=words.max() + 1) for line in train])
    theirs = LatentDirichletAllocation(count, random_state=0).fit(bags).components_
    found = {"scikit-learn": perplexity(theirs / theirs.sum(1, keepdims=True), new)}
    start = np.random.default_rng(3).normal(0.0, 0.5, (count, bags.shape[1]))
    data, program = torch.tensor(train), partial(model, start=torch.tensor(start).float())
    for loss in (Exact_ELBO(), DAPS_ELBO(num_particles=8), Reinforce_ELBO(num_particles=8)):
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        svi = SVI(program, AutoDiscrete(program), Adam({"lr": 0.1}), loss=loss)
        result = fit(svi, data, num_steps=num_steps, progress=False)
        learned = result.params["topics"].softmax(-1).detach().numpy()
        found[type(loss).__name__] = perplexity(learned, new)
    print(*(f"{name:<15}perplexity {value:.2f}" for name, value in found.items()), sep="\n")
    print(discrete_posterior(result, data, num_draws=25))
    return found


if __name__ == "__main__":
    print(__doc__) if sys.argv[1:] else main()
