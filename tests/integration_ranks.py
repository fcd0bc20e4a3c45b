"""Run by torchrun in tests/test_integrations_ranks.py: what every rank saw, as JSON in the given folder."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ala_metric import ALALoss, losses, metrics, training

STEPS, EVERY = 6, 2
METRIC = metrics.RecallAtK((1,), distance="cosine")


def labelled(rows: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) // 2 % 4  # both parts of a divided set have pairs
    return TensorDataset(torch.randn(rows, 5, generator=generator) + labels[:, None], labels)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Linear(5, 3)


def by_lightning(folder: Path) -> tuple[Any, Any, nn.Module]:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.strategies import DDPStrategy

    from ala_metric.integrations.lightning import ALACallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.loss_fn = network(), losses.DistanceMixtureLoss()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return self.loss_fn(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Counted:
        """The validation set; how often it is read."""

        times = 0

        def __iter__(self) -> Any:
            self.times += 1
            return iter(DataLoader(labelled(23, 2), batch_size=23))

    validation = Counted()
    adapt = ALACallback("loss_fn", METRIC, validation, every=EVERY, offsets=(0,))
    module = Module()
    pl.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
        callbacks=[adapt, ModelCheckpoint(folder / "checkpoints", filename="last-step")],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, DataLoader(labelled(24, 1), batch_size=4))
    assert validation.times == (STEPS // EVERY if dist.get_rank() == 0 else 0), validation.times
    return adapt.ala, module.loss_fn, module.network


def by_accelerate(folder: Path) -> tuple[Any, Any, nn.Module]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped, optimizer, batches = accelerator.prepare(
        model, optimizer, DataLoader(labelled(48, 1), batch_size=4)
    )
    loss_fn = ALALoss(
        losses.DistanceMixtureLoss(),
        METRIC,
        lambda: training.embed(accelerator.unwrap_model(wrapped), DataLoader(labelled(23, 2), batch_size=23)),
        STEPS,
        every=EVERY,
        offsets=(0,),
        step_on="optimizer",
    )
    accelerator.register_for_checkpointing(loss_fn)
    for inputs, labels in batches:
        optimizer.zero_grad()
        accelerator.backward(loss_fn(wrapped(inputs), labels))
        optimizer.step()
        loss_fn.step()
    if accelerator.is_main_process:
        (folder / "checkpoints").mkdir()
        training.save_checkpoint(folder / "checkpoints" / "last-step.pt", {"loss": loss_fn.state_dict()})
    return loss_fn, loss_fn.loss, accelerator.unwrap_model(wrapped)


def main(how: str, folder: str) -> None:
    torch.set_num_threads(1)
    ala, loss, model = {"lightning": by_lightning, "accelerate": by_accelerate}[how](Path(folder))
    seen = {
        "world": dist.get_world_size(),
        "history": [[r.step, r.metric, r.reward, list(r.action), list(r.phi)] for r in ala.history],
        "phi": loss.phi.tolist(),
        "weights": [p.tolist() for p in model.parameters()],
    }
    (Path(folder) / f"rank-{dist.get_rank()}.json").write_text(json.dumps(seen))
    while not all((Path(folder) / f"rank-{rank}.json").exists() for rank in (0, 1)):
        time.sleep(0.02)  # no collective is pending on any rank when the first one leaves
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
