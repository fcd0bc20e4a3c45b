"""Lightning: the module stays as it is, one callback is added."""

import logging
import warnings

import torch
from torch.utils.data import DataLoader

from ala_metric import data, losses, metrics, training
from ala_metric.integrations.lightning import ALACallback

try:
    import lightning.pytorch as pl
except ImportError:
    import pytorch_lightning as pl

STEPS, EVERY = 60, 10


class Embedder(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = training.SmallConvNet(dim=32)
        self.loss_fn = losses.DistanceMixtureLoss()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        images, labels = batch
        return self.loss_fn(self(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.manual_seed(0)
    digits = data.load("digits")
    batches = data.ClassBalancedSampler(digits.train.labels, classes=10, per_class=6)
    adapt = ALACallback(
        "loss_fn",
        metric=metrics.RecallAtK((1,), distance="cosine"),
        validation=DataLoader(digits.validation, batch_size=256),
        every=EVERY,
    )
    trainer = pl.Trainer(
        max_steps=STEPS,
        callbacks=[adapt],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Embedder(), DataLoader(digits.train, batch_sampler=batches))
    for record in adapt.history:
        print(record.step, f"Recall@1 {record.metric:.3f}", "reward", record.reward)


if __name__ == "__main__":
    main()
