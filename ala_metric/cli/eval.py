"""``ala-metric eval``: the metrics of a run's test split, or of given embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import training
from ..data import Splits
from ..types import CheckpointError
from . import curves, experiment, runs, shards, tasks
from .arguments import UsageError
from .arrays import read_array, read_classes
from .options import DeviceName, EvalOptions


def run(options: EvalOptions) -> int:
    """Print the table, write the JSON and draw the curves."""
    _check(options)
    with shards.ranks() as rank:
        if options.checkpoint is not None:
            what, out, result, draw = _run(options, options.checkpoint)
        elif options.embeddings is not None and options.labels is not None:
            what, out, result, draw = _arrays(options, options.embeddings, options.labels)
        else:
            raise UsageError("--embeddings and --labels are needed together")
    if rank != 0:
        return 0
    if out is not None:
        runs.write_json(out, result)
    if options.picture is not None:
        curves.draw(draw(), options.picture)
    print(tasks.title(what, result))
    print(tasks.table(result))
    if out is not None:
        print(f"written to {out}")
    elif options.checkpoint is not None:
        print(f"not written: {runs.METRICS} holds what train measures; --out takes these numbers")
    if options.picture is not None:
        print(f"drawn in {options.picture}")
    return 0


_Measured = tuple[str, Path | None, dict[str, Any], Callable[[], curves.Curves]]
"""Title, JSON file, metrics, and what makes the curves."""


def _run(options: EvalOptions, checkpoint: Path) -> _Measured:
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    out = options.out
    if options.k is not None or options.distance != "cosine":
        _check_options(options, runs.read_options(folder).data)
    elif out is None and checkpoint in (folder, folder / runs.CHECKPOINT):
        out = folder / runs.METRICS  # as train wrote it: the same metrics of the same weights
    runs.check_target(out)
    splits, (outputs, labels) = embed_test_split(folder, checkpoint, options.root, options.device)
    result = tasks.measure(splits, outputs, labels, k=options.k, distance=options.distance, impl=options.impl)
    return (
        f"test split of {folder}",
        out,
        result,
        lambda: curves.measured(splits, outputs, labels, options.distance, options.impl),
    )


def _arrays(options: EvalOptions, embeddings: Path, labels: Path) -> _Measured:
    if options.gallery is not None and options.gallery_labels is not None:
        return _search(options, (embeddings, labels), (options.gallery, options.gallery_labels))
    emb, (classes,) = read_array(embeddings), read_classes(labels)
    _check_rows(embeddings, emb, labels, classes, at_least=2)
    if options.pairs is None or options.folds is None:
        result = tasks.retrieval(emb, classes, options.k, options.distance, options.impl)
        draw = lambda: curves.retrieval_curves(emb, classes, options.distance, options.impl)  # noqa: E731
    else:
        pairs = read_array(options.pairs)
        result = tasks.verification(emb, classes, pairs, read_array(options.folds), options.distance)
        draw = lambda: curves.verification_curves(emb, classes, pairs, options.distance)  # noqa: E731
    return str(embeddings), options.out, result, draw


def _search(options: EvalOptions, queries: tuple[Path, Path], gallery: tuple[Path, Path]) -> _Measured:
    """Rows of one file searched among those of another."""
    emb, ref = read_array(queries[0]), read_array(gallery[0])
    labels, ref_labels = read_classes(queries[1], gallery[1])
    _check_rows(queries[0], emb, queries[1], labels, at_least=1)
    _check_rows(gallery[0], ref, gallery[1], ref_labels, at_least=1)
    if ref.shape[1] != emb.shape[1]:
        raise ValueError(
            f"{gallery[0]} must have {emb.shape[1]} columns like {queries[0]}, got {ref.shape[1]}"
        )
    dtype = torch.promote_types(emb.dtype, ref.dtype)
    emb, found = emb.to(dtype), (ref.to(dtype), ref_labels)
    result = tasks.retrieval(emb, labels, options.k, options.distance, options.impl, gallery=found)

    def draw() -> curves.Curves:
        return curves.retrieval_curves(emb, labels, options.distance, options.impl, gallery=found)

    return f"{queries[0]} in {gallery[0]}", options.out, result, draw


def _check_rows(rows: Path, emb: Tensor, names: Path, labels: Tensor, at_least: int) -> None:
    if emb.ndim != 2 or len(emb) < at_least:
        raise ValueError(f"{rows} must hold {at_least} rows or more, [N, D], got {list(emb.shape)}")
    if labels.shape != emb.shape[:1]:
        raise ValueError(f"{names} must hold [{len(emb)}] classes, got {list(labels.shape)}")


def _check(options: EvalOptions) -> None:
    """Refuse a call that cannot work before anything is read."""
    given = options.embeddings is not None or options.labels is not None
    if given == (options.checkpoint is not None):
        raise UsageError("give either a run, or --embeddings with --labels")
    if (options.gallery is None) != (options.gallery_labels is None):
        raise UsageError("--gallery and --gallery-labels are needed together")
    if options.gallery is not None and not given:
        raise UsageError("--gallery goes with --embeddings; a run searches its test split")
    if options.gallery is not None and options.pairs is not None:
        raise UsageError("--gallery is searched, --pairs are verified; give one of them")
    if (options.pairs is None) != (options.folds is None):
        raise UsageError("--pairs and --folds are needed together")
    if options.pairs is not None and not given:
        raise UsageError("--pairs go with --embeddings; a run has the pairs of its data set")
    if given and (options.root is not None or options.device != "auto"):
        raise UsageError("--root and --device go with a run; --embeddings need neither")
    if options.pairs is not None and options.k is not None:
        raise UsageError("--k is for retrieval; --pairs are verified")
    runs.check_target(options.out)
    runs.check_target(options.picture)
    if options.picture is not None and options.picture.suffix not in (".png", ".svg"):
        raise UsageError(f"picture must end in .png or .svg, got {options.picture.name!r}")


def _check_options(options: EvalOptions, name: str) -> None:
    """Refuse what would not change the metrics of this data set."""
    task = tasks.task_of(name)
    if task != "retrieval" and options.k is not None:
        raise UsageError(f"--k is for retrieval; {name} is for {task}")
    if task == "classification" and options.distance != "cosine":
        raise UsageError(f"--distance compares embeddings; {name} is for classification")


def embed_test_split(
    folder: Path, checkpoint: Path, root: Path | None = None, device: DeviceName = "auto"
) -> tuple[Splits, tuple[Tensor, Tensor]]:
    """The data set of a run, and the outputs for its test split by the network of the checkpoint."""
    path = folder / runs.CHECKPOINT if checkpoint.is_dir() else checkpoint
    if not path.is_file():
        raise UsageError(f"{path} does not exist; give a folder that ala-metric train has written")
    options = runs.read_options(folder)
    state = training.load_checkpoint(path)
    splits = experiment.load_data(options.data, root or options.root, options.image_size)
    model = experiment.make_network(options, splits)
    try:
        model.load_state_dict(state["model"])
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} does not hold the network of {folder / runs.OPTIONS}: {error}"
        ) from None
    workers = experiment.loader_workers(None, splits)
    model.to(shards.of_this_rank(experiment.pick_device(device)))
    return splits, shards.embed(experiment.validating(model, splits.test, workers))
