"""What are documents about? Topics of their words, by three losses.

Each word is of a latent topic (Hofmann, 1999). Half of a new document tells its shares of topics,
by which the other half is predicted. Documents are made; `main("ap_bow.npz")` reads some.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.optim import Adam
from sklearn.decomposition import LatentDirichletAllocation

from numpyro_dvae.diagnostics import discrete_posterior
from numpyro_dvae.fit import fit
from numpyro_dvae.guides import AutoDiscrete
from numpyro_dvae.infer import DAPS_ELBO, SVI, Exact_ELBO, Reinforce_ELBO

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


def model(words: Array, start: Array) -> None:
    """Words of documents, (documents, words), of topics that start at these logits."""
    topics = jax.nn.log_softmax(numpyro.param("topics", start))
    shares = jax.nn.log_softmax(numpyro.param("shares", jnp.zeros((len(words), 1, len(start)))))
    numpyro.factor("prior", (topics.sum() + shares.sum()) / len(start))  # Dirichlet's
    rows, length = words.shape
    with numpyro.plate("documents", rows, dim=-2), numpyro.plate("words", length, dim=-1):
        topic = numpyro.sample("topic", dist.Categorical(logits=shares))
        numpyro.factor("word", topics[topic, words])  # no distribution over all words at each


def main(path: str | None = None, num_steps: int = 300) -> dict[str, float]:
    """The perplexity of words held out, by each loss and by scikit-learn."""
    words, count = documents(path), 4 if path is None else 10
    train, new = np.split(words, [len(words) * 3 // 4])
    bags = np.array([np.bincount(line, minlength=words.max() + 1) for line in train])
    theirs = LatentDirichletAllocation(count, random_state=0).fit(bags).components_
    found = {"scikit-learn": perplexity(theirs / theirs.sum(1, keepdims=True), new)}
    start = np.random.default_rng(3).normal(0.0, 0.5, (count, bags.shape[1]))
    data, program = jnp.array(train), partial(model, start=jnp.array(start))
    key = jax.random.key(0)
    for loss in (Exact_ELBO(), DAPS_ELBO(num_particles=8), Reinforce_ELBO(num_particles=8)):
        svi = SVI(program, AutoDiscrete(program), Adam(0.1), loss)
        result = fit(key, svi, data, num_steps=num_steps, progress=False)
        learned = np.asarray(jax.nn.softmax(result.params["topics"]))
        found[type(loss).__name__] = perplexity(learned, new)
    print(*(f"{name:<15}perplexity {value:.2f}" for name, value in found.items()), sep="\n")
    print(discrete_posterior(key, result, data, num_draws=25))
    return found


if __name__ == "__main__":
    print(__doc__) if sys.argv[1:] else main()
