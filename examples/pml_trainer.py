"""A trainer of pytorch-metric-learning with a miner and a sampler, and the hook that adapts its loss."""

import logging

import torch
from pytorch_metric_learning import miners, samplers, trainers
from torch import nn
from torch.utils.data import DataLoader

from ala_metric import data, losses, metrics, training
from ala_metric.integrations.pml import TrainerHook

EPOCHS, ITERATIONS = 3, 20


def main() -> None:
    logging.getLogger("PML").setLevel(logging.WARNING)
    torch.manual_seed(0)
    digits = data.load("digits")
    models = {"trunk": training.SmallConvNet(dim=64), "embedder": nn.Linear(64, 32)}
    loss = losses.FocalWeightingLoss()
    hook = TrainerHook(
        loss,
        metric=metrics.RecallAtK((1,), distance="cosine"),
        validation=DataLoader(digits.validation, batch_size=256),
        total_steps=EPOCHS * ITERATIONS,
        every=10,
    )
    trainer = trainers.MetricLossOnly(
        models,
        {
            f"{name}_optimizer": torch.optim.Adam(model.parameters(), lr=1e-3)
            for name, model in models.items()
        },
        batch_size=60,
        loss_funcs={"metric_loss": loss},
        mining_funcs={"tuple_miner": miners.MultiSimilarityMiner()},
        dataset=digits.train,
        sampler=samplers.MPerClassSampler(digits.train.labels, m=6, length_before_new_iter=60 * ITERATIONS),
        iterations_per_epoch=ITERATIONS,
        dataloader_num_workers=0,
        end_of_iteration_hook=hook,
    )
    trainer.train(num_epochs=EPOCHS)
    for record in hook.history:
        print(record.step, f"Recall@1 {record.metric:.3f}", "phi", [round(value, 3) for value in record.phi])


if __name__ == "__main__":
    main()
