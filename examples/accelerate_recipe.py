"""Hugging Face Accelerate with gradient accumulation: the loss counts optimiser steps, not batches."""

import tempfile

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ala_metric import ALALoss, data, losses, metrics, training

STEPS, EVERY = 30, 10


def main() -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
    digits = data.load("digits")
    batches = data.ClassBalancedSampler(digits.train.labels, classes=10, per_class=6)
    validation = DataLoader(digits.validation, batch_size=256)  # whole on every rank: not prepared
    model = training.SmallConvNet(dim=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train = DataLoader(digits.train, batch_sampler=batches)
    model, optimizer, train = accelerator.prepare(model, optimizer, train)
    loss_fn = ALALoss(
        losses.DistanceMixtureLoss(),
        metric=metrics.RecallAtK((1,), distance="cosine"),
        validate=lambda: training.embed(accelerator.unwrap_model(model), validation),
        total_steps=STEPS,
        every=EVERY,
        step_on="optimizer",
    ).to(accelerator.device)
    accelerator.register_for_checkpointing(loss_fn)  # save_state and load_state take the controller along

    steps = 0
    while steps < STEPS:
        for images, labels in train:
            with accelerator.accumulate(model):
                accelerator.backward(loss_fn(model(images), labels))
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                loss_fn.step()
                steps += 1
            if steps == STEPS:
                break

    with tempfile.TemporaryDirectory() as folder:
        accelerator.save_state(folder)
        phi = loss_fn.phi.clone()
        loss_fn.set_phi(torch.zeros(10))
        accelerator.load_state(folder)
        assert torch.equal(loss_fn.phi, phi)
    for record in loss_fn.history:
        print(record.step, f"Recall@1 {record.metric:.3f}", "reward", record.reward)


if __name__ == "__main__":
    main()
