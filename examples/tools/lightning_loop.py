"""One's own loop in Lightning, on several devices: an `ELBOModule` is a module like any other.

Each process has the loss of its own rows; gradients are averaged. `fit` has one device's numbers.

    pip install lightning
    python examples/tools/lightning_loop.py 2
"""

import sys

import lightning
import pyro
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from pyro_dvae.guides import IndependentGuide
from pyro_dvae.infer import DAPS_ELBO
from pyro_dvae.models import BernoulliLikelihood, DiscreteVAE, UniformPrior
from pyro_dvae.nets import MLPDecoder, MLPEncoder


class Training(lightning.LightningModule):
    """A discrete VAE of digits."""

    def __init__(self) -> None:
        super().__init__()
        decoder = MLPDecoder(8, 16, (8, 8), hidden=(64,))
        model = DiscreteVAE(decoder, UniformPrior(8, 16), BernoulliLikelihood())
        guide = IndependentGuide(MLPEncoder((8, 8), 8, 16, hidden=(64,)))
        self.elbo = DAPS_ELBO(num_particles=8, beta=0.5)(model, guide)

    def on_fit_start(self) -> None:
        """Processes begin alike and draw differently."""
        pyro.set_rng_seed(self.global_rank)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """The mean loss of this process's images, in nats."""
        loss = self.elbo(batch[0]) / len(batch[0])
        self.log("loss", loss, prog_bar=True, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Any of Torch's."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main() -> None:
    """Train, and print the loss of the last epoch."""
    images = torch.as_tensor(load_digits().images > 8, dtype=torch.float32)
    loader = DataLoader(TensorDataset(images), batch_size=64, shuffle=True, drop_last=True)
    settings = {"max_epochs": 5, "enable_checkpointing": False, "logger": False}
    trainer = lightning.Trainer(devices=int(sys.argv[1]), **settings)
    trainer.fit(Training(), loader)
    if trainer.is_global_zero:
        print(f"loss per image: {float(trainer.callback_metrics['loss']):.3f}")


if __name__ == "__main__":
    main()
