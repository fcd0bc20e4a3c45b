"""The training loop: exact resume, signals, and embeddings that leave no trace in the model."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import ProxyAnchorLoss, TripletMarginLoss
from pytorch_metric_learning.miners import TripletMarginMiner
from torch import nn
from torch.utils.data import DataLoader

from ala_metric import ALALoss, CheckpointError, training
from ala_metric.data import ImageSet
from ala_metric.losses import DistanceMixtureLoss
from ala_metric.metrics import RecallAtK

IMAGES = ImageSet(
    torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    torch.arange(12).repeat_interleave(5),
    "toy",
)


class Noisy(nn.Module):
    """A model that draws from all three global streams in every training step."""

    def __init__(self) -> None:
        super().__init__()
        self.network = training.SmallConvNet(dim=8, channels=(4, 4, 4))
        self.dropout = nn.Dropout(0.2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            images = images * (1 + 0.1 * random.random() + 0.1 * np.random.rand())  # noqa: NPY002
        return self.dropout(self.network(images))


class Run:
    """A fresh run with every part that has a state."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        random.seed(1)
        self.model = Noisy()
        self.loss = ProxyAnchorLoss(num_classes=12, embedding_size=8)  # has parameters of its own
        parameters = [*self.model.parameters(), *self.loss.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 1e-2, total_steps=23)
        self.miner = TripletMarginMiner(type_of_triplets="semihard")

    def fit(self, **options: Any) -> training.FitResult:
        return training.fit(
            self.model,
            self.loss,
            IMAGES,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            miner=self.miner,
            batch_classes=5,
            per_class=3,
            seed=7,
            **options,
        )

    def bits(self) -> list[Any]:
        """Everything that a step changes."""
        optimizer = self.optimizer.state_dict()
        moments = [tensor for entry in optimizer["state"].values() for tensor in entry.values()]
        tensors = [*self.model.state_dict().values(), *self.loss.state_dict().values(), *moments]
        streams = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # noqa: NPY002
        return [
            [tensor.tolist() for tensor in tensors],
            optimizer["param_groups"],
            self.scheduler.state_dict(),
            streams,
        ]


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[list[Any], tuple[float, ...]]:
    run = Run()
    result = run.fit(total_steps=23)
    return run.bits(), result.losses


class Stop(Exception):
    pass


def stop_at(step: int) -> Callable[[int, float], None]:
    def on_step(done: int, loss: float) -> None:
        if done == step:
            raise Stop

    return on_step


# --- resume


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 5, 8, 22, 23])  # an epoch has 4 batches
def test_resume_is_bit_identical(
    stop: int, tmp_path: Path, uninterrupted: tuple[list[Any], tuple[float, ...]]
) -> None:
    first = Run().fit(total_steps=stop, checkpoint=tmp_path / "c")
    assert (first.steps, first.resumed_at, len(first.losses)) == (stop, 0, stop)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    second = Run()
    torch.manual_seed(5)
    result = second.fit(total_steps=23, checkpoint=tmp_path / "c", resume=True)
    assert (result.steps, result.resumed_at) == (23, stop)
    assert result.losses == uninterrupted[1]
    assert second.bits() == uninterrupted[0]


@pytest.mark.parametrize("stop", [3, 5])
def test_resume_with_workers_is_bit_identical(
    stop: int, tmp_path: Path, uninterrupted: tuple[list[Any], tuple[float, ...]]
) -> None:
    """Workers draw batches ahead of the training, across the end of an epoch too."""
    Run().fit(total_steps=stop, checkpoint=tmp_path / "c", workers=2)
    second = Run()
    second.fit(total_steps=23, checkpoint=tmp_path / "c", resume=True, workers=1)
    assert second.bits() == uninterrupted[0]


def test_a_signal_to_the_whole_group_does_not_reach_the_workers(
    tmp_path: Path, uninterrupted: tuple[list[Any], tuple[float, ...]]
) -> None:
    def interrupt(step: int, loss: float) -> None:
        if step == 2:
            listed = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
            workers = [
                int(pid)
                for pid in listed.split()
                if "pt_data_worker" in Path(f"/proc/{pid}/comm").read_text()
            ]
            seen.append(sum(os.getpgid(pid) != os.getpgid(0) for pid in workers))

    seen: list[int] = []
    run = Run()
    run.fit(total_steps=23, workers=2, on_step=interrupt)
    assert seen[0] >= 2  # workers of an earlier run may still be leaving
    assert run.bits() == uninterrupted[0]


def test_a_crash_goes_on_from_the_last_periodic_checkpoint(
    tmp_path: Path, uninterrupted: tuple[list[Any], tuple[float, ...]]
) -> None:
    with pytest.raises(Stop):
        Run().fit(total_steps=23, checkpoint=tmp_path / "c", checkpoint_every=6, on_step=stop_at(16))
    second = Run()
    result = second.fit(total_steps=23, checkpoint=tmp_path / "c", resume=True)
    assert result.resumed_at == 12
    assert second.bits() == uninterrupted[0]


def test_each_state_is_saved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(
        sys.modules[training.fit.__module__],
        "save_checkpoint",
        lambda path, state: saved.append(len(state["losses"])),
    )
    Run().fit(total_steps=9, checkpoint=tmp_path / "c", checkpoint_every=3)
    assert saved == [3, 6, 9]
    saved.clear()
    with pytest.raises(training.Interrupted):
        Run().fit(
            total_steps=9,
            checkpoint=tmp_path / "c",
            checkpoint_every=3,
            on_step=lambda done, loss: os.kill(os.getpid(), signal.SIGINT) if done == 6 else None,
        )
    assert saved == [3, 6]


def test_checkpoints_change_nothing(
    tmp_path: Path, uninterrupted: tuple[list[Any], tuple[float, ...]]
) -> None:
    run = Run()
    run.fit(total_steps=23, checkpoint=tmp_path / "c", checkpoint_every=1)
    assert run.bits() == uninterrupted[0]


class AdaptiveRun(Run):
    """The same with a loss that adapts itself every four steps."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = ALALoss(
            DistanceMixtureLoss(),
            metric=RecallAtK((1, 5)),
            validate=lambda: training.embed(self.model, DataLoader(IMAGES, batch_size=32)),
            total_steps=23,
            every=4,
            offsets=(0, 1),
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 1e-2, total_steps=23)

    def bits(self) -> list[Any]:
        optimizer = self.optimizer.state_dict()["state"]
        tensors = [*self.model.state_dict().values(), self.loss.phi]
        tensors += [tensor for entry in optimizer.values() for tensor in entry.values()]
        history = [{**vars(record), "seconds": 0} for record in self.loss.history]
        policy = [tensor.tolist() for tensor in self.loss.policy.state_dict().values()]
        return [
            [tensor.tolist() for tensor in tensors],
            repr(history),
            policy,
            torch.get_rng_state().tolist(),
        ]


@pytest.fixture(scope="module")
def adaptive() -> list[Any]:
    run = AdaptiveRun()
    run.fit(total_steps=23)
    assert len({tuple(record.phi) for record in run.loss.history}) > 1  # phi has moved
    return run.bits()


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 11, 12, 22])
def test_an_adaptive_run_resumes_to_the_same_bits(stop: int, tmp_path: Path, adaptive: list[Any]) -> None:
    AdaptiveRun().fit(total_steps=stop, checkpoint=tmp_path / "c")
    second = AdaptiveRun()
    second.fit(total_steps=23, checkpoint=tmp_path / "c", resume=True)
    assert second.bits() == adaptive


def test_batches_depend_on_the_seed_alone() -> None:
    seen: list[list[int]] = []

    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen[-1].extend((images.flatten(1).sum(1) * 255).round().int().tolist())
            return self.linear(images.flatten(1))

    for draws, loss in ((0, TripletMarginLoss()), (3, lambda outputs, labels: outputs.square().mean())):
        seen.append([])
        torch.rand(draws)
        model = Recorder()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = torch.get_rng_state()
        training.fit(model, loss, IMAGES, total_steps=9, optimizer=optimizer, batch_classes=5, per_class=3)
        assert torch.equal(torch.get_rng_state(), before)  # the loop itself draws nothing
    assert seen[0] == seen[1]
    assert len(seen[0]) == 9 * 15


def test_learning_happens() -> None:
    torch.manual_seed(0)
    model = training.SmallConvNet(dim=12, channels=(8, 8, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    result = training.fit(
        model, nn.CrossEntropyLoss(), IMAGES, total_steps=60, optimizer=optimizer, batch_classes=12
    )
    # 60 random images of 12 classes are learned by heart; chance is log 12 = 2.48.
    assert result.losses[0] > 2
    assert result.losses[-1] < 0.5


# --- refusals


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"total_steps": -1}, ValueError, "total_steps must not be negative, got -1"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1, got 0"),
        ({"resume": True}, ValueError, "need a checkpoint file"),
        ({"checkpoint_every": 5}, ValueError, "need a checkpoint file"),
        ({"checkpoint": "no/such/folder/c"}, FileNotFoundError, "no/such/folder"),
    ],
)
def test_bad_options_are_refused_before_the_first_step(
    options: dict, error: type[Exception], match: str
) -> None:
    run = Run()
    before = run.bits()
    with pytest.raises(error, match=match):
        run.fit(**{"total_steps": 3, **options})
    assert run.bits() == before


def test_a_checkpoint_that_is_a_folder_is_refused_before_the_first_step(tmp_path: Path) -> None:
    run = Run()
    before = run.bits()
    with pytest.raises(IsADirectoryError, match="checkpoint must be the path of a file, got the folder"):
        run.fit(total_steps=3, checkpoint=tmp_path)
    assert run.bits() == before


def test_a_state_that_no_checkpoint_holds_is_refused_before_the_first_step(tmp_path: Path) -> None:
    class Tagged(torch.Tensor):
        pass

    run = Run()
    run.model.register_buffer("mean", torch.ones(2).as_subclass(Tagged))
    before = run.bits()
    with pytest.raises(TypeError, match=r"state\['model'\]\['mean'\] must be plain data .*Tagged"):
        run.fit(total_steps=3, checkpoint=tmp_path / "c")
    assert run.bits() == before
    run.fit(total_steps=3)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        *(
            ({name: value}, rf"{name} must be an integer, got {value!r}")
            for name in ("total_steps", "batch_classes", "per_class", "seed", "workers", "children")
            for value in (2.5, True, "a", float("nan"))
        ),
        ({"total_steps": None}, "total_steps must be an integer, got None"),
        ({"checkpoint": "c", "checkpoint_every": 2.5}, "checkpoint_every must be an integer, got 2.5"),
        ({"checkpoint": 5}, "checkpoint must be the path of a file, got int"),
        ({"model": 3}, r"model must be a torch\.nn\.Module, got int"),
        ({"loss_fn": None}, "loss_fn must be callable, got NoneType"),
        ({"dataset": [1, 2]}, "dataset must have labels int64 .* got list"),
        ({"optimizer": None}, r"optimizer must be a torch\.optim\.Optimizer, got NoneType"),
        ({"scheduler": 3}, "scheduler must have a method step, got int"),
        ({"miner": 3}, "miner must be callable, got int"),
        ({"on_step": 3}, "on_step must be callable, got int"),
        ({"race": 3}, "race must be a RaceSettings, got int"),
        ({"paired": 3}, "paired must be a PairedSettings, got int"),
        (
            {"loss_fn": lambda outputs, labels: outputs},
            r"must return a tensor with one element, got \[6, 8\]",
        ),
        ({"loss_fn": lambda outputs, labels: 1.0}, "must return a tensor with one element, got float"),
    ],
)
def test_arguments_of_another_type_are_refused_by_name(options: dict, match: str) -> None:
    model = training.SmallConvNet(dim=8, channels=(2, 2, 2))
    arguments = {
        "model": model,
        "loss_fn": TripletMarginLoss(),
        "dataset": IMAGES,
        "total_steps": 2,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "batch_classes": 3,
        "per_class": 2,
    }
    with pytest.raises(TypeError, match=match):
        training.fit(**(arguments | options))


def test_counts_of_numpy_are_integers() -> None:
    assert Run().fit(total_steps=np.int64(2)).steps == 2


def test_settings_of_another_mode_are_refused() -> None:
    race, paired = training.RaceSettings(), training.PairedSettings()
    with pytest.raises(
        ValueError, match=r"paired=PairedSettings\(...\) needs mode='paired', got mode='race'"
    ):
        Run().fit(total_steps=2, mode="race", paired=paired)
    with pytest.raises(ValueError, match=r"race=RaceSettings\(...\) needs mode='race', got mode='paired'"):
        Run().fit(total_steps=2, mode="paired", race=race)
    with pytest.raises(ValueError, match=r"needs mode='race', got mode=None"):
        Run().fit(total_steps=2, race=race)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    Run().fit(total_steps=1, checkpoint=tmp_path / "c")
    other = Run()
    other.scheduler = None
    with pytest.raises(ValueError, match=r"holds .*'scheduler'"):
        other.fit(total_steps=2, checkpoint=tmp_path / "c", resume=True)
    training.save_checkpoint(tmp_path / "alien", {"a": 1})
    with pytest.raises(CheckpointError, match=r"not one of training\.fit"):
        Run().fit(total_steps=2, checkpoint=tmp_path / "alien", resume=True)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    before = model[1].weight.clone()
    with pytest.raises(FloatingPointError, match="the loss of step 1 is nan"):
        training.fit(
            model,
            lambda outputs, labels: outputs.sum() * float("nan"),
            IMAGES,
            total_steps=3,
            optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
            batch_classes=5,
        )
    assert torch.equal(model[1].weight, before)


# --- modes


def test_fit_trains_a_model_in_eval_mode_but_keeps_frozen_parts() -> None:
    model = nn.Sequential(training.SmallConvNet(dim=8, channels=(4, 4, 4)))
    frozen = model[0].features[0][1]
    options: dict[str, Any] = {
        "total_steps": 2,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "batch_classes": 5,
    }
    frozen.eval()
    training.fit(model, TripletMarginLoss(), IMAGES, **options)
    assert frozen.num_batches_tracked == 0
    model.eval()
    training.fit(model, TripletMarginLoss(), IMAGES, **options)
    assert frozen.num_batches_tracked == 2


@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_embed_restores_every_mode_and_touches_nothing(batch_size: int) -> None:
    model = Noisy()
    model.network.features[0][1].eval()  # a frozen BatchNorm in a model in train mode
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    streams = torch.get_rng_state()
    outputs, targets = training.embed(model, DataLoader(IMAGES, batch_size=batch_size))
    assert torch.equal(torch.get_rng_state(), streams)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not outputs.requires_grad
    assert torch.equal(targets, IMAGES.labels)
    model.eval()
    # Batch sizes choose other convolution kernels: float32 rounding of sums of some 40 terms of order 1.
    torch.testing.assert_close(outputs, model(IMAGES.images.float() / 255), rtol=1e-4, atol=1e-5)


def test_embed_restores_modes_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].eval()
    with pytest.raises(RuntimeError):
        training.embed(model, [(torch.zeros(3, 5), torch.zeros(3))])
    assert [module.training for module in model.modules()] == [True, True, False]


def test_embed_refuses_batches_that_do_not_belong_together() -> None:
    aligned = (torch.zeros(2, 3), torch.tensor([0, 1]))
    for rows, labels in ((1, 2), (2, 3)):  # in the sum of both, outputs and targets are as many
        shift = (torch.zeros(rows, 3), torch.zeros(labels, dtype=torch.int64))
        with pytest.raises(
            ValueError, match=rf"got \[{rows}, 3\] outputs for \[{labels}\] targets in batch 1, counted"
        ):
            training.embed(nn.Identity(), [aligned, shift, (torch.zeros(2, 3), torch.tensor([0]))])
    with pytest.raises(ValueError, match=r"got \[1, 3\] outputs for \[\] targets in batch 0"):
        training.embed(nn.Identity(), [(torch.zeros(1, 3), 3)])
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got int"):
        training.embed(3, [aligned])  # type: ignore[arg-type]


def test_embed_takes_arrays() -> None:
    inputs, labels = np.ones((2, 3), dtype=np.float32), np.array([1, 2])
    outputs, targets = training.embed(nn.Identity(), [(inputs, labels)])
    assert (outputs.tolist(), targets.tolist()) == (inputs.tolist(), [1, 2])


def test_embed_refuses_an_empty_loader() -> None:
    with pytest.raises(ValueError, match="loader must yield at least one"):
        training.embed(nn.Linear(2, 2), [])


@pytest.mark.parametrize("size", [4, 8, 28, 31])
def test_small_conv_net_takes_any_size(size: int) -> None:
    assert training.SmallConvNet(dim=5)(torch.zeros(3, 1, size, size)).shape == (3, 5)
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        training.SmallConvNet(dim=0)


# --- signals


SCRIPT = """
import sys, time, torch
from ala_metric import training
from tests.test_training import IMAGES

torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))

def on_step(step, loss):
    print(step, flush=True)
    time.sleep(float(sys.argv[2]))

training.fit(model, lambda outputs, labels: outputs.square().mean(), IMAGES, total_steps=10**9,
             optimizer=torch.optim.SGD(model.parameters(), lr=0.1), batch_classes=5,
             checkpoint=sys.argv[1], on_step=on_step)
"""


def start(checkpoint: Path, pause: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(checkpoint), str(pause)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_once_and_exits(number: int, code: int, tmp_path: Path) -> None:
    process = start(tmp_path / "c", pause=0.05)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    finished = int(("1\n" + output).split()[-1])
    assert len(training.load_checkpoint(tmp_path / "c")["losses"]) == finished


def test_a_second_signal_acts_at_once(tmp_path: Path) -> None:
    process = start(tmp_path / "c", pause=300)  # the step would last for minutes
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)  # two signals in the same instant would arrive as one
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert not (tmp_path / "c").exists()


def test_an_interrupted_run_resumes_to_the_same_bits(
    tmp_path: Path, uninterrupted: tuple[list[Any], tuple[float, ...]]
) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def terminate(done: int, loss: float) -> None:
        if done == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(training.Interrupted) as interrupted:
        Run().fit(total_steps=23, checkpoint=tmp_path / "c", on_step=terminate)
    assert interrupted.value.code == 143
    assert interrupted.value.step == 9
    assert str(interrupted.value) == f"stopped after step 9, saved to {tmp_path / 'c'}"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    second = Run()
    second.fit(total_steps=23, checkpoint=tmp_path / "c", resume=True)
    assert second.bits() == uninterrupted[0]


def test_fit_works_outside_the_main_thread() -> None:
    results: list[training.FitResult] = []
    thread = threading.Thread(target=lambda: results.append(Run().fit(total_steps=2)))
    thread.start()
    thread.join()
    assert results[0].steps == 2


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_fit_and_embed_on_a_gpu() -> None:
    model = training.SmallConvNet(dim=8, channels=(4, 4, 4)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training.fit(model, TripletMarginLoss(), IMAGES, total_steps=2, optimizer=optimizer, batch_classes=5)
    outputs, targets = training.embed(model, DataLoader(IMAGES, batch_size=16))
    assert outputs.is_cuda
    assert targets.is_cuda


LEFT_HALF_READ = """
import torch
from torch.utils.data import DataLoader
from ala_metric.training.interrupt import leave_signals_to_the_parent
loader = DataLoader(range(100), num_workers=1, worker_init_fn=leave_signals_to_the_parent)
batches = iter(loader)
next(batches)
batches._shutdown_workers = lambda: None  # as if an exception's traceback kept it alive to the end
print("leaving", flush=True)
"""


def test_a_loader_left_half_read_does_not_keep_the_process() -> None:
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LEFT_HALF_READ],
        capture_output=True,
        text=True,
        cwd=root,
        timeout=60,
    )
    assert done.stdout == "leaving\n"
