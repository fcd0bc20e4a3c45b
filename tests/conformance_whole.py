"""The conformance checks of whole runs: trainers, testers and InferenceModel of pytorch-metric-learning."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from pytorch_metric_learning import miners, reducers, testers, trainers
from pytorch_metric_learning.utils.inference import CustomKNN, InferenceModel, MatchFinder
from torch import Tensor, nn

from ala_metric import metrics

from .conformance import CHECKS, CLASSES, DIM, Make, batch, check, close

__all__ = ["CHECKS", "Make"]
ROWS, STEPS = 16, 2
ALL = miners.TripletMarginMiner(9, "all")


def _parts() -> tuple[dict[str, nn.Module], dict[str, Any]]:
    torch.manual_seed(0)
    models: dict[str, nn.Module] = {
        "trunk": nn.Linear(DIM, 4).double(),
        "classifier": nn.Linear(4, CLASSES).double(),
    }
    optimizers = {
        f"{name}_optimizer": torch.optim.SGD(model.parameters(), lr=0.1) for name, model in models.items()
    }
    return models, optimizers


Plain = Callable[[dict[str, nn.Module], Tensor, Tensor], Tensor]


def _same_as_the_plain_loop(
    trainer: type[trainers.BaseTrainer], functions: dict[str, Any], plain: Plain, **kwargs: Any
) -> None:
    """Train as the trainer does, then by hand; ``plain`` gives the loss by hand."""
    x, labels = batch(ROWS)
    data: list[Any] = [(row, int(label)) for row, label in zip(x, labels)]
    if trainer is trainers.TwoStreamMetricLoss:
        data = [(row, -row, label) for row, label in data]
        kwargs["data_and_label_getter"] = lambda item: item
    models, optimizers = _parts()
    if "classifier_loss" not in functions:
        del models["classifier"], optimizers["classifier_optimizer"]
    trainer(
        models=models,
        optimizers=optimizers,
        batch_size=ROWS,
        loss_funcs=functions,
        dataset=data,
        sampler=torch.utils.data.SequentialSampler(data),
        dataloader_num_workers=0,
        iterations_per_epoch=STEPS,
        data_device="cpu",
        **kwargs,
    ).train()
    twins, optimizers = _parts()
    for _ in range(STEPS):
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        plain(twins, x, labels).backward()
        for optimizer in optimizers.values():
            optimizer.step()
    start, _ = _parts()
    assert not torch.equal(models["trunk"].weight, start["trunk"].weight)
    for name in models.keys() & twins.keys():
        for mine, theirs in zip(models[name].parameters(), twins[name].parameters()):
            close(mine, theirs)


@check
def trained_by_the_trainer(make: Make) -> None:
    loss_fn = make()

    def plain(models: dict[str, nn.Module], x: Tensor, labels: Tensor) -> Tensor:
        out = models["trunk"](x)
        return loss_fn(out, labels, ALL(out, labels))

    _same_as_the_plain_loop(
        trainers.MetricLossOnly, {"metric_loss": make()}, plain, mining_funcs={"tuple_miner": ALL}
    )


@check
def trained_with_a_classifier(make: Make) -> None:
    loss_fn, entropy = make(), nn.CrossEntropyLoss()

    def plain(models: dict[str, nn.Module], x: Tensor, labels: Tensor) -> Tensor:
        out = models["trunk"](x)
        return 2 * loss_fn(out, labels) + 0.5 * entropy(models["classifier"](out), labels)

    _same_as_the_plain_loop(
        trainers.TrainWithClassifier,
        {"metric_loss": make(), "classifier_loss": entropy},
        plain,
        loss_weights={"metric_loss": 2, "classifier_loss": 0.5},
    )


@check
def trained_in_a_cascade(make: Make) -> None:
    first, second = make(), make()

    def plain(models: dict[str, nn.Module], x: Tensor, labels: Tensor) -> Tensor:
        out = models["trunk"](x)
        return first(out[:, :2], labels) + second(out[:, 2:], labels)

    _same_as_the_plain_loop(
        trainers.CascadedEmbeddings,
        {"metric_loss_0": make(), "metric_loss_1": make()},
        plain,
        embedding_sizes=(2, 2),
    )


@check
def trained_on_two_streams(make: Make) -> None:
    """The trainer joins the streams and shifts the mined indices into the second half."""
    loss_fn = make(reducer=reducers.SumReducer())

    def plain(models: dict[str, nn.Module], x: Tensor, labels: Tensor) -> Tensor:
        one, two = models["trunk"](x), models["trunk"](-x)
        return loss_fn(one, labels, ALL(one, labels, two, labels.clone()), two, labels.clone())

    _same_as_the_plain_loop(
        trainers.TwoStreamMetricLoss,
        {"metric_loss": make(reducer=reducers.SumReducer())},
        plain,
        mining_funcs={"tuple_miner": ALL},
    )


@check
def tested_by_the_testers(make: Make) -> None:
    """A tester after every epoch sees what a plain evaluation of the model sees."""
    x, labels = batch(24)
    y, ref_labels = batch(31, seed=4)
    train = [(row, int(label)) for row, label in zip(x, labels)]
    splits = {"val": torch.utils.data.TensorDataset(x, labels)}
    splits["gallery"] = torch.utils.data.TensorDataset(y, ref_labels)
    models, optimizers = _parts()
    model = models["trunk"]
    calculator = metrics.accuracy_calculator((1, 3))
    tester = testers.GlobalEmbeddingSpaceTester(
        accuracy_calculator=calculator, dataloader_num_workers=0, data_device="cpu", batch_size=7
    )
    seen: list[tuple[Any, ...]] = []

    def after_epoch(trainer: Any) -> None:
        assert model.training
        found = []
        for asked in (None, [("val", ["gallery"])], [("val", ["gallery", "val"])]):
            found.append(dict(tester.test(splits, trainer.epoch, model, splits_to_eval=asked)["val"]))
        with torch.no_grad():
            out, refs = (nn.functional.normalize(model(rows)) for rows in (x, y))
        both = torch.cat([out, refs]), torch.cat([labels, ref_labels])
        own = torch.eye(24, 55, dtype=torch.bool)
        expected = (
            _recall(out, labels, out, labels, own[:, :24]),
            _recall(out, labels, refs, ref_labels, own[:, :31] & False),
            _recall(out, labels, *both, own),
        )
        seen.append((trainer.epoch, found, expected))

    trainers.MetricLossOnly(
        models={"trunk": model},
        optimizers={"trunk_optimizer": optimizers["trunk_optimizer"]},
        batch_size=24,
        loss_funcs={"metric_loss": make()},
        dataset=train,
        dataloader_num_workers=0,
        iterations_per_epoch=STEPS,
        data_device="cpu",
        end_of_epoch_hook=after_epoch,
    ).train(num_epochs=2)
    assert [epoch for epoch, _, _ in seen] == [1, 2]
    for epoch, results, expected in seen:
        for found, recalls in zip(results, expected, strict=True):
            assert found["epoch"] == epoch
            for k, recall in zip((1, 3), recalls, strict=True):
                close(found[f"recall_at_{k}_level0"], recall)


def _recall(x: Tensor, labels: Tensor, y: Tensor, ref_labels: Tensor, own: Tensor) -> list[float]:
    d = torch.cdist(x.double(), y.double()).masked_fill(own, torch.inf)
    hits = ref_labels[d.argsort(1)[:, :3]] == labels[:, None]
    return [hits[:, :k].any(1).double().mean().item() for k in (1, 3)]


@check
def used_for_inference(make: Make) -> None:
    """InferenceModel finds and matches by the distance that the loss was trained with."""
    x, labels = batch(ROWS)
    loss_fn, model = make(), _parts()[0]["trunk"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_fn(model(x), labels).backward()
        optimizer.step()
    inference = InferenceModel(
        model,
        match_finder=MatchFinder(loss_fn.distance, threshold=0.8),
        knn_func=_Knn(loss_fn.distance),
        data_device="cpu",
    )
    inference.train_knn(x)
    values, neighbours = inference.get_nearest_neighbors(x[:5], k=3)
    with torch.no_grad():
        rows = nn.functional.normalize(model(x))
    similar = loss_fn.distance.is_inverted
    exact = (rows @ rows.T if similar else torch.cdist(rows, rows))[:5]
    order = exact.argsort(dim=1, descending=similar)[:, :3]
    assert torch.equal(neighbours, order)
    close(values, exact.gather(1, order), atol=1e-6)  # the root of a rounding error for a row and itself
    expected = exact >= 0.8 if similar else exact <= 0.8
    assert torch.equal(torch.as_tensor(inference.get_matches(x[:5], x)), expected)
    for i, j in itertools.product(range(2), range(5, 8)):
        assert bool(inference.is_match(x[i : i + 1], x[j : j + 1])) == bool(expected[i, j])


class _Knn:
    """The interface of their FaissKNN, without faiss."""

    def __init__(self, distance: Any) -> None:
        self.search = CustomKNN(distance)

    def train(self, rows: Tensor) -> None:
        self.rows = rows

    def __call__(self, query: Tensor, k: int) -> Any:
        return self.search(query, k, self.rows)
