"""Every option of every command: one frozen dataclass per command, from which the parser is made."""

# ruff: noqa: RUF009  (`option` returns a dataclasses.field)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .arguments import option

DataName = Literal["digits", "glyphs"]
FileDataName = Literal["sop", "lfw", "webface", "cifar10", "cifar100", "imagenet"]
TrainDataName = Literal["digits", "glyphs", "sop", "lfw", "webface", "cifar10", "cifar100", "imagenet"]
TuneDataName = Literal["digits", "glyphs", "sop"]
LossName = Literal["mixture", "focal"]
TrainLossName = Literal["mixture", "focal", "correlation"]
ModeName = Literal["paper", "fixed", "uniform", "random_walk", "random_static"]
TrainModeName = Literal["paper", "fixed", "uniform", "random_walk", "random_static", "paired", "race"]
MinerName = Literal["semihard", "none"]
ClassDataName = Literal["digits", "glyphs", "cifar10", "cifar100", "imagenet"]
NetworkName = Literal["perceptron", "convnet", "resnet32", "wrn", "densenet", "nasnet"]
OptimizerName = Literal["sgd", "rmsprop", "powersign"]
PresetName = Literal["default", "paper"]
DistanceName = Literal["cosine", "euclidean"]
DeviceName = Literal["auto", "cpu", "cuda"]
ImplName = Literal["auto", "native", "strips", "reference"]
RankImplName = Literal["auto", "native", "strips", "reference", "faiss"]


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Train fixed and adaptive losses side by side on character images and write one report page."""

    data: DataName = option("glyphs", "images to train on")
    loss: LossName = option("mixture", "loss whose parameters adapt")
    miner: MinerName = option("semihard", "triplets the loss is given; it changes what adapting can gain")
    seeds: int = option(3, "paired seeds; each trains one fixed and one adaptive run", at_least=1)
    seed: int = option(0, "first of the seeds", at_least=0, below=2**31)
    steps: int = option(600, "training steps of every run", at_least=2)
    every: int | None = option(
        None, "training steps between two actions; 30, and fewer in a short run", at_least=1
    )
    classes_per_batch: int | None = option(None, "classes in a batch; 32, or all if fewer", at_least=2)
    samples_per_class: int = option(4, "images of each class in a batch", at_least=2)
    lr: float = option(1e-3, "learning rate of Adam", at_least=0)
    dim: int = option(64, "numbers in an embedding", at_least=1)
    workers: int = option(2, "runs that train at the same time, one core each", at_least=1)
    queries: int = option(8, "test queries in the picture grid", at_least=1)
    out: Path = option(Path("report.html"), "page to write")
    picture: Path | None = option(None, "also write the page's figures as one picture (.png or .svg)")
    quick: bool = option(False, "digits, 2 seeds and a few steps: checks that all parts work, in seconds")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train an embedding with a loss that adapts itself, and keep a checkpoint and the history."""

    data: TrainDataName = option("glyphs", "images to train on")
    root: Path | None = option(None, "folder with the files of the data set; see docs/datasets.md")
    image_size: int | None = option(None, "pixels that image files are resized to; 64", at_least=8)
    loss: TrainLossName | None = option(
        None, "loss whose parameters adapt; mixture, and correlation where classes are learnt"
    )
    mode: TrainModeName = option(
        "paper",
        "who moves the parameters: the controller, nobody, a random control, paired forks, or a race",
    )
    budget: float = option(4.0, "compute of a race, in trainings of that many steps", at_least=1)
    children: int = option(1, "models that share the controller in mode paper", at_least=1)
    miner: MinerName | None = option(
        None, "triplets the loss is given; semihard, and none where classes are learnt"
    )
    steps: int = option(600, "training steps in total", at_least=1)
    every: int = option(30, "training steps between two actions of the controller", at_least=1)
    seed: int = option(0, "seed of weights, batches and controller", at_least=0, below=2**31)
    classes_per_batch: int | None = option(None, "classes in a batch; 32, or all if fewer", at_least=2)
    samples_per_class: int = option(4, "images of each class in a batch", at_least=2)
    lr: float = option(1e-3, "learning rate of Adam", at_least=0)
    dim: int = option(64, "numbers in an embedding", at_least=1)
    impl: ImplName = option("auto", "implementation of the pair operations")
    device: DeviceName = option("auto", "where to train")
    threads: int | None = option(None, "threads that torch may use; its own choice if not given", at_least=1)
    loader_workers: int | None = option(
        None, "processes that decode image files; one per core, at most 8", at_least=0
    )
    save_every: int = option(200, "training steps between two checkpoints", at_least=1)
    out: Path | None = option(None, "folder to write; runs/DATA-LOSS-MODE-SEED if not given")
    resume: bool = option(False, "go on from the checkpoint in the folder")


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """Which margin, temperature, scale? Race a loss's parameters; compare the winner with the defaults."""

    loss: str = option("MultiSimilarityLoss", "class of pytorch-metric-learning, see losses.available()")
    data: TuneDataName = option("glyphs", "images to train on")
    root: Path | None = option(None, "folder with the files of the data set; see docs/datasets.md")
    image_size: int | None = option(None, "pixels that image files are resized to; 64", at_least=8)
    budget: float = option(4.0, "compute of the race, in trainings of that many steps", at_least=1.5)
    miner: MinerName = option("none", "triplets the loss is given; it changes which values are good")
    steps: int = option(600, "training steps of one training", at_least=20)
    seed: int = option(0, "seed of weights, batches and draws", at_least=0, below=2**31)
    classes_per_batch: int | None = option(None, "classes in a batch; 32, or all if fewer", at_least=2)
    samples_per_class: int = option(4, "images of each class in a batch", at_least=2)
    lr: float = option(1e-3, "learning rate of Adam", at_least=0)
    dim: int = option(64, "numbers in an embedding", at_least=1)
    device: DeviceName = option("auto", "where to train")
    threads: int | None = option(None, "threads that torch may use; its own choice if not given", at_least=1)
    loader_workers: int | None = option(
        None, "processes that decode image files; one per core, at most 8", at_least=0
    )
    out: Path | None = option(None, "JSON file to write the answer to")


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Measure a trained run on its test split, or embeddings of your own."""

    checkpoint: Path | None = option(None, "a run's folder or its checkpoint file", positional=True)
    embeddings: Path | None = option(None, "embeddings to measure: .npy, .npz or .safetensors, [N, D]")
    labels: Path | None = option(None, "their classes, integers or strings: .npy, .npz or .safetensors, [N]")
    gallery: Path | None = option(
        None, "embeddings to search, [M, D]; if not given, each row is searched among the others"
    )
    gallery_labels: Path | None = option(None, "the classes of the gallery, [M]")
    pairs: Path | None = option(None, "pairs of rows for verification: .npy, .npz or .safetensors, [P, 2]")
    folds: Path | None = option(None, "fold of each pair: .npy, .npz or .safetensors, [P]")
    root: Path | None = option(None, "folder of the data set, where it has moved since the training")
    k: tuple[int, ...] | None = option(
        None, "neighbours to look at for Recall@k; 1 10 100, and 1000 for sop", at_least=1
    )
    distance: DistanceName = option("cosine", "what near means: by the angle, or as the crow flies")
    impl: RankImplName = option("auto", "implementation of the ranking")
    device: DeviceName = option("auto", "where the network of a run computes")
    out: Path | None = option(
        None, "JSON file to write; if not given, metrics.json of the run, unless --k or another --distance is"
    )
    picture: Path | None = option(None, "precision/recall and ROC curves to write (.png or .svg)")


@dataclass(frozen=True, kw_only=True)
class PlotOptions:
    """Draw what a run did: its parameters, its validation metric and its rewards over time."""

    run: Path | None = option(None, "a run's folder", positional=True)
    out: Path | None = option(None, "picture to write (.png or .svg); history.png in the folder if not given")


@dataclass(frozen=True, kw_only=True)
class PolicyOptions:
    """Learn a policy for class correlations, look at one, or train with it."""

    action: Literal["train", "show", "apply"] | None = option(None, "train, show or apply", positional=True)
    file: Path | None = option(None, "the policy: written by train, read by show and apply", positional=True)
    data: ClassDataName = option("digits", "images to classify")
    root: Path | None = option(None, "folder with the files of the data set; see docs/datasets.md")
    image_size: int | None = option(None, "pixels that image files are resized to; 64", at_least=8)
    classes: int = option(
        100, "classes of glyphs; the other data sets have a number of their own", at_least=2
    )
    network: NetworkName = option("convnet", "network; nasnet needs timm")
    optimizer: OptimizerName = option("sgd", "what trains the network")
    preset: PresetName = option("default", "form of the loss and settings of the controller")
    fine_tune: bool = option(False, "apply: go on learning the policy, instead of acting by it as it is")
    save: Path | None = option(None, "apply: file for the policy after fine-tuning")
    steps: int = option(600, "training steps", at_least=1)
    every: int | None = option(
        None, "training steps between two actions; 10, and 200 in the preset paper", at_least=1
    )
    seed: int = option(0, "seed of weights, batches and controller", at_least=0, below=2**31)
    lr: float | None = option(None, "learning rate; 0.05, and 0.001 with rmsprop", at_least=0)
    device: DeviceName = option("auto", "where to train")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Count and check the files of a data set before hours are spent: ala-metric data check NAME ROOT."""

    action: Literal["check"] | None = option(None, "check", positional=True)
    name: FileDataName | None = option(
        None, "sop, lfw, webface, cifar10, cifar100 or imagenet", positional=True
    )
    root: Path | None = option(None, "folder with its files", positional=True)
    all: bool = option(False, "decode every image, not only a sample")
    sample: int = option(200, "images of each split to decode", at_least=1)
    subset: bool = option(False, "a part of the published data set is what you mean: counts may differ")
    loader_workers: int | None = option(
        None, "processes that decode image files; one per core, at most 8", at_least=0
    )


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Say what is installed, which implementation each device would use and why, and what is missing."""

    json: bool = option(False, "print JSON instead of text")


def options_of_run(given: Mapping[str, Any]) -> Path | None:
    """File with the options of the run that is to be resumed, if that is what was asked for."""
    if not given.get("resume") or "out" not in given:
        return None
    path: Path = given["out"] / "options.json"
    return path if path.is_file() else None
