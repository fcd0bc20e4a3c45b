"""Lightning and the trainers of pytorch-metric-learning adapt as a plain loop does, and resume exactly."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ala_metric import ALALoss, losses, metrics
from ala_metric.controller import Policy
from ala_metric.integrations.pml import TrainerHook
from ala_metric.training import embed

from .fakes import FakeLoss, FakeMetric

METRIC = metrics.RecallAtK((1,), distance="cosine")
STEPS, EVERY = 12, 3


def labelled(rows: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 4
    return TensorDataset(torch.randn(rows, 5, generator=generator) + labels[:, None], labels)


def loader(batch: int = 8) -> DataLoader[Any]:
    return DataLoader(labelled(24, 1), batch_size=batch)


VALIDATION = DataLoader(labelled(23, 2), batch_size=23)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))


def plain_loop(steps: int = STEPS, batch: int = 8, **options: Any) -> tuple[ALALoss, nn.Module]:
    """What the integrations must reproduce."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_fn = ALALoss(
        losses.DistanceMixtureLoss(),
        METRIC,
        lambda: embed(model, VALIDATION),
        STEPS,
        step_on="optimizer",
        **({"every": EVERY} | options),
    )
    batches = list(loader(batch))
    for step in range(steps):
        inputs, labels = batches[step % len(batches)]
        optimizer.zero_grad()
        loss_fn(model(inputs), labels).backward()
        optimizer.step()
        loss_fn.step()
    return loss_fn, model


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


# pytorch-metric-learning


def pml_trainer(hook: Any, loss: Any, trunk: nn.Module) -> Any:
    from pytorch_metric_learning import trainers

    return trainers.MetricLossOnly(
        {"trunk": trunk},
        {"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.1)},
        8,
        {"metric_loss": loss},
        labelled(24, 1),
        sampler=range(24),
        iterations_per_epoch=3,
        dataloader_num_workers=0,
        end_of_iteration_hook=hook,
    )


def test_the_hook_of_a_pml_trainer_is_the_plain_loop() -> None:
    loss, trunk = losses.DistanceMixtureLoss(), network()
    hook = TrainerHook(loss, METRIC, VALIDATION, STEPS, every=EVERY)
    pml_trainer(hook, loss, trunk).train(num_epochs=STEPS // 3)
    expected, model = plain_loop()
    assert hook.history == expected.history
    assert len(hook.history) == STEPS // EVERY
    assert torch.equal(loss.phi, expected.phi)
    assert not torch.equal(loss.phi, losses.DistanceMixtureLoss().phi)
    assert same_weights(trunk, model)


def test_the_hook_goes_on_from_its_state() -> None:
    loss, trunk = losses.DistanceMixtureLoss(), network()
    hook = TrainerHook(loss, METRIC, VALIDATION, STEPS, every=EVERY)
    pml_trainer(hook, loss, trunk).train(num_epochs=2)
    other_loss = losses.DistanceMixtureLoss()
    other = TrainerHook(other_loss, METRIC, VALIDATION, STEPS, every=EVERY)
    other.load_state_dict(hook.state_dict())
    pml_trainer(other, other_loss, trunk).train(num_epochs=2)
    assert other.history == plain_loop()[0].history


def test_the_hook_validates_as_told() -> None:
    batch = [(torch.ones(4, 2), torch.tensor([0, 0, 1, 1]))]
    seen = []

    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(self.training)
            return 2 * x

    class Wrapper(nn.DataParallel):
        def forward(self, *_: Any) -> Any:
            raise AssertionError("rank 0 validates alone: a wrapper could wait for the others")

    models = {"trunk": Wrapper(Doubled()), "embedder": Doubled()}
    hook = TrainerHook(FakeLoss(), FakeMetric(), batch, 4, every=2)
    hook._trainer = SimpleNamespace(models=models)
    assert torch.equal(hook._validate()[0], 4 * torch.ones(4, 2))
    assert seen == [False, False]
    assert models["embedder"].training
    told = TrainerHook(FakeLoss(), FakeMetric(), lambda trainer: trainer.answer, 4, every=1)
    told(SimpleNamespace(answer=batch[0]))
    assert len(told.history) == 1


def test_the_hook_cannot_measure_a_width_before_there_is_a_trainer() -> None:
    with pytest.raises(ValueError, match="a policy needs a loss that declares statistics_width"):
        TrainerHook(FakeLoss(), FakeMetric(), VALIDATION, 4, policy=Policy())


# Lightning


@pytest.fixture
def lightning() -> Any:
    return pytest.importorskip("lightning.pytorch", reason="needs Lightning: pip install lightning")


def module_class(pl: Any) -> Any:
    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network()
            self.loss_fn: Any = losses.DistanceMixtureLoss()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return self.loss_fn(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module


def fit(
    pl: Any,
    callback: Any,
    folder: Path,
    module: Any = None,
    resume: Any = None,
    batch: int = 8,
    **options: Any,
) -> Any:
    module = module or module_class(pl)()
    options = {"max_steps": STEPS, "logger": False, "enable_checkpointing": False} | options
    trainer = pl.Trainer(
        callbacks=[callback],
        accelerator="cpu",
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, loader(batch), ckpt_path=resume)
    return module, trainer


def make_callback(*arguments: Any, **options: Any) -> Any:
    from ala_metric.integrations.lightning import ALACallback

    return ALACallback(*(arguments or ("loss_fn", METRIC, VALIDATION)), **({"every": EVERY} | options))


@pytest.mark.filterwarnings("ignore")
def test_the_callback_is_the_plain_loop(lightning: Any, tmp_path: Path) -> None:
    callback = make_callback()
    assert callback.policy is None
    # max_epochs only: the number of steps is asked from the trainer
    module, _ = fit(lightning, callback, tmp_path, max_steps=-1, max_epochs=4)
    expected, model = plain_loop()
    assert same_weights(module.network, model)
    assert callback.history == expected.history
    assert torch.equal(module.loss_fn.phi, expected.phi)
    assert callback.policy is not None


@pytest.mark.filterwarnings("ignore")
def test_the_callback_counts_optimiser_steps(lightning: Any, tmp_path: Path) -> None:
    callback = make_callback(total_steps=STEPS)
    fit(lightning, callback, tmp_path, max_steps=5, accumulate_grad_batches=2)
    assert [record.step for record in callback.history] == [3]


@pytest.mark.filterwarnings("ignore")
def test_the_callback_counts_every_step_of_manual_optimisation(lightning: Any, tmp_path: Path) -> None:
    class Manual(module_class(lightning)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, _: int) -> None:
            for _ in range(2):
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(self.loss_fn(self(batch[0]), batch[1]))
                optimizer.step()

    callback = make_callback()
    _, trainer = fit(lightning, callback, tmp_path, Manual())
    assert trainer.global_step == STEPS
    assert [record.step for record in callback.history] == list(range(EVERY, STEPS + 1, EVERY))


@pytest.mark.filterwarnings("ignore")
def test_the_controller_goes_on_in_a_second_fit(lightning: Any, tmp_path: Path) -> None:
    callback, module = make_callback(), module_class(lightning)()
    fit(lightning, callback, tmp_path, module, max_steps=6)
    first = list(callback.history)
    fit(lightning, callback, tmp_path, module, max_steps=6)
    assert callback.history[: len(first)] == first
    assert [record.step for record in callback.history] == list(range(EVERY, 13, EVERY))
    assert callback.history[len(first)].reward is not None
    fit(lightning, callback, tmp_path, max_steps=6)  # another loss starts afresh
    assert [record.step for record in callback.history] == list(range(EVERY, 7, EVERY))


@pytest.mark.filterwarnings("ignore")
def test_the_callback_resumes_from_the_trainers_checkpoint(lightning: Any, tmp_path: Path) -> None:
    # One batch per epoch: where Lightning goes on within a broken epoch is not ours to test.
    options = {"total_steps": STEPS, "every": 4, "offsets": (0, 3)}
    _, trainer = fit(lightning, make_callback(**options), tmp_path, max_steps=6, batch=24)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    callback = make_callback(**options)
    module, _ = fit(lightning, callback, tmp_path, resume=tmp_path / "stopped.ckpt", batch=24)
    expected, model = plain_loop(batch=24, every=4, offsets=(0, 3))
    assert callback.history == expected.history
    assert torch.equal(module.loss_fn.phi, expected.phi)
    assert same_weights(module.network, model)


@pytest.mark.filterwarnings("ignore")
def test_the_callback_logs_and_validates_as_told(lightning: Any, tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    records: list[Any] = []
    batch = labelled(23, 2).tensors

    def validate(module: Any) -> Any:
        assert torch.is_autocast_enabled("cpu")  # as in training
        return module(batch[0]), batch[1]

    callback = make_callback("loss_fn", METRIC, validate, logger=records.append)
    fit(lightning, callback, tmp_path, logger=CSVLogger(tmp_path), precision="bf16-mixed", max_steps=4)
    table = next(tmp_path.rglob("metrics.csv")).read_text()
    assert "ala/phi_1" in table.splitlines()[0]
    assert [record["step"] for record in records] == [3]


@pytest.mark.filterwarnings("ignore")
def test_the_callback_refuses_what_it_cannot_do(lightning: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="step_on is decided by the callback"):
        make_callback(step_on="forward")
    with pytest.raises(AttributeError, match="no_such_loss"):
        fit(lightning, make_callback("no_such_loss", METRIC, VALIDATION), tmp_path)
    with pytest.raises(ValueError, match="total_steps is needed"):
        fit(lightning, make_callback(), tmp_path, max_steps=-1, max_epochs=-1)
    module = module_class(lightning)()
    module.loss_fn = nn.CrossEntropyLoss()
    with pytest.raises(TypeError, match="must be callable and have phi"):
        fit(lightning, make_callback(), tmp_path, module)
    module.loss_fn = plain_loop(steps=1)[0]
    with pytest.raises(TypeError, match="loss_fn is an ALALoss already"):
        fit(lightning, make_callback(), tmp_path, module)
