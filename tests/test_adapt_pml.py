"""AdaptPML: attributes of pytorch-metric-learning losses become phi, and nothing else changes."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances, miners, reducers
from pytorch_metric_learning import losses as pml
from torch import Tensor

from ala_metric import ALALoss, PhiSpec, losses, metrics
from ala_metric.types import AdaptiveLoss

from . import oracle

PROXIES = {"num_classes": 4, "embedding_size": 6}
MAKE: dict[str, Any] = {
    "MultiSimilarityLoss": {},
    "ContrastiveLoss": {},
    "TripletMarginLoss": {},
    "MarginLoss": {},
    "NTXentLoss": {},
    "CircleLoss": {},
    "ProxyAnchorLoss": PROXIES,
    "ArcFaceLoss": PROXIES,
}
WITH_CLASSES = {
    "CosFaceLoss",
    "NormalizedSoftmaxLoss",
    "ProxyNCALoss",
    "SoftTripleLoss",
    "SubCenterArcFaceLoss",
}


def make(name: str) -> Any:
    return getattr(pml, name)(**(PROXIES if name in WITH_CLASSES else MAKE.get(name, {})))


@pytest.fixture(params=list(MAKE))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def x() -> Tensor:
    return torch.randn(24, 6)


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(24) % 4


def moved(loss_fn: Any, share: float = 0.3) -> Tensor:
    """A point inside the ranges, away from the start."""
    return torch.tensor([s.low + share * (s.high - s.low) for s in loss_fn.phi_spec])


def value_and_gradients(loss_fn: Any, x: Tensor, *args: Any, **kwargs: Any) -> list[Tensor]:
    x = x.clone().requires_grad_()
    value = loss_fn(x, *args, **kwargs)
    return [value.detach(), *torch.autograd.grad(value, [x, *loss_fn.parameters()])]


# ------------------------------------------------------------------------------------------- transparent
@pytest.mark.parametrize("every", sorted(losses.available()))
def test_every_known_loss_starts_inside_its_ranges_and_is_unchanged(
    every: str, x: Tensor, labels: Tensor
) -> None:
    inner = make(every)
    loss_fn = losses.AdaptPML(copy.deepcopy(inner))
    assert isinstance(loss_fn, AdaptiveLoss)
    assert isinstance(loss_fn, pml.BaseMetricLossFunction)
    labels = labels.sort().values  # SmoothAPLoss wants the classes one after the other
    for found, expected in zip(
        value_and_gradients(loss_fn, x, labels), value_and_gradients(inner, x, labels)
    ):
        assert torch.equal(found, expected)
    before = loss_fn(x, labels)
    for k, spec in enumerate(loss_fn.phi_spec):  # each parameter matters: none is a dead attribute
        phi = loss_fn.phi.clone()
        middle = (
            (spec.low * spec.high) ** 0.5 if spec.rule == "multiplicative" else (spec.low + spec.high) / 2
        )
        phi[k] = middle if abs(middle - phi[k]) > 0.05 * middle else 0.9 * spec.high
        loss_fn.set_phi(phi)
        assert loss_fn(x, labels) != before, spec.name
        before = loss_fn(x, labels)
    assert loss_fn.statistics(x, labels).isfinite().all()


def test_moved_equals_built_with_these_values(name: str, x: Tensor, labels: Tensor) -> None:
    loss_fn = losses.AdaptPML(make(name))
    loss_fn.set_phi(moved(loss_fn))
    arguments = dict(zip([s.name for s in loss_fn.phi_spec], loss_fn.phi.double().tolist()))
    if name == "ArcFaceLoss":
        arguments["margin"] = torch.tensor(arguments["margin"]).rad2deg().item()
    twin = getattr(pml, name)(**MAKE[name], **arguments)
    twin.load_state_dict(loss_fn.loss.state_dict())
    for found, expected in zip(value_and_gradients(loss_fn, x, labels), value_and_gradients(twin, x, labels)):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)  # degrees in float32


@pytest.mark.parametrize("how", ["triplets", "pairs", "references"])
def test_what_pml_passes_is_passed_on(how: str, x: Tensor, labels: Tensor) -> None:
    kwargs: dict[str, Any] = {}
    if how == "references":
        kwargs = {"ref_emb": torch.randn(9, 6), "ref_labels": torch.arange(9) % 4}
    else:
        miner = miners.TripletMarginMiner() if how == "triplets" else miners.MultiSimilarityMiner()
        kwargs = {"indices_tuple": miner(x, labels)}
    for each in ("MultiSimilarityLoss", "MarginLoss", "TripletMarginLoss"):
        found = value_and_gradients(losses.AdaptPML(make(each)), x, labels, **kwargs)
        expected = value_and_gradients(make(each), x, labels, **kwargs)
        assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_trained_weights_stay_trainable_and_are_not_moved(x: Tensor, labels: Tensor) -> None:
    inner = make("ProxyAnchorLoss")
    loss_fn = losses.AdaptPML(inner, {"margin": (0.05, 0.4)})
    assert [id(p) for p in loss_fn.parameters()] == [id(inner.proxies)]
    optimizer = torch.optim.SGD(loss_fn.parameters(), lr=1.0)
    before = inner.proxies.detach().clone()
    loss_fn(x, labels).backward()
    optimizer.step()
    assert not torch.equal(inner.proxies, before)


# ----------------------------------------------------------------------------------------- paths, kinds
def test_attributes_of_parts(x: Tensor, labels: Tensor) -> None:
    loss = pml.ContrastiveLoss(
        distance=distances.LpDistance(power=2), reducer=reducers.ThresholdReducer(low=0.1)
    )
    loss_fn = losses.AdaptPML(
        loss, {"distance.power": (0.5, 4.0, "additive"), "reducer.reducers.neg_loss.low": (0.0, 1.0)}
    )
    loss_fn.set_phi(torch.tensor([1.5, 0.25]))
    assert loss.distance.power == 1.5
    assert loss.reducer.reducers["neg_loss"].low == 0.25
    assert [s.name for s in loss_fn.phi_spec] == ["distance.power", "reducer.reducers.neg_loss.low"]


def test_weights_of_multiple_losses(x: Tensor, labels: Tensor) -> None:
    parts = [pml.NTXentLoss(), pml.ContrastiveLoss()]
    loss_fn = losses.AdaptPML(
        pml.MultipleLosses(parts), {"weights.1": (0.1, 10.0), "losses.0.temperature": (0.01, 1.0)}
    )
    loss_fn.set_phi(torch.tensor([0.5, 0.25]))
    expected = pml.NTXentLoss(temperature=0.25)(x, labels) + 0.5 * parts[1](x, labels)
    assert torch.allclose(loss_fn(x, labels), expected)
    assert loss_fn.statistics(x, labels).isfinite().all()
    named = pml.MultipleLosses({"a": parts[0], "b": parts[1]}, weights={"a": 1, "b": 2})
    losses.AdaptPML(named, {"weights.b": (0.1, 10.0)}).set_phi(torch.tensor([3.0]))
    assert named.weights["b"] == 3.0


def test_around_pml_wrappers(x: Tensor, labels: Tensor) -> None:
    """PML's wrappers admit its own classes by name, so AdaptPML goes around them."""
    memory = losses.AdaptPML(
        pml.CrossBatchMemory(pml.ContrastiveLoss(), 6, 64), {"loss.neg_margin": (0.2, 1.4)}
    )
    twin = pml.CrossBatchMemory(pml.ContrastiveLoss(neg_margin=0.75), 6, 64)
    memory.set_phi(torch.tensor([0.75]))
    for _ in range(3):
        batch = torch.randn(24, 6)
        assert torch.equal(memory(batch, labels), twin(batch, labels))
    kept = memory.loss.embedding_memory.clone()
    memory.statistics(x, labels)  # validation data must not enter the queue
    assert torch.equal(memory.loss.embedding_memory, kept)
    assert memory.loss.queue_idx == twin.queue_idx
    views = losses.AdaptPML(pml.SelfSupervisedLoss(pml.NTXentLoss()), {"loss.temperature": (0.01, 1.0)})
    assert torch.equal(views(x, x + 1), pml.SelfSupervisedLoss(pml.NTXentLoss())(x, x + 1))


def test_tensors_are_filled(x: Tensor, labels: Tensor) -> None:
    for count in (None, 4):
        loss_fn = losses.AdaptPML(pml.MarginLoss(num_classes=count), {"beta": (0.5, 1.4)})
        before, old = loss_fn.loss.beta, loss_fn(x, labels)
        loss_fn.set_phi(torch.tensor([0.75]))
        assert torch.equal(loss_fn.loss.beta, torch.full_like(before, 0.75))
        assert torch.equal(before, torch.full_like(before, 1.2))  # an earlier graph may hold it
        assert loss_fn(x, labels) != old


def test_rules() -> None:
    loss_fn = losses.AdaptPML(
        pml.MultiSimilarityLoss(),
        {"alpha": (0.5, 10.0), "beta": (40.0, 60.0), "base": PhiSpec("other", 0.1, 2.0, "additive")},
    )
    assert [(s.name, s.rule) for s in loss_fn.phi_spec] == [
        ("alpha", "multiplicative"),
        ("beta", "additive"),
        ("base", "additive"),
    ]


# ----------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("make_loss", "ranges", "error", "match"),
    [
        (pml.NTXentLoss, {"temprature": (0.1, 1)}, ValueError, "no attribute 'temprature'; .*temperature"),
        (pml.NTXentLoss, {"distance.pow": (0.1, 1)}, ValueError, "attribute 'distance.pow'; .* p, power"),
        (pml.NTXentLoss, {"nothing.power": (0.1, 1)}, ValueError, "no attribute 'nothing'"),
        (pml.NTXentLoss, {"distance": (0.1, 1)}, TypeError, "distance must be a number, got CosineSim"),
        (pml.TripletMarginLoss, {"swap": (0, 1)}, TypeError, "swap must be a number, got False"),
        (pml.NTXentLoss, {"temperature": (0.1, 1)}, ValueError, r"must lie in \[0.1, 1\], got 0.07"),
        (pml.NTXentLoss, {"temperature": (1, 0.1)}, ValueError, "low < high"),
        (pml.NTXentLoss, {"temperature": 0.1}, ValueError, r"must be numbers \(low, high\).* got 0.1"),
        (pml.NTXentLoss, {"temperature": (0.01, 1, "geometric")}, ValueError, "got 'geometric'"),
        (pml.NTXentLoss, {}, ValueError, "at least one attribute"),
        (pml.NTXentLoss, ["temperature"], TypeError, r"ranges must map .* got \['temperature'\]"),
        (pml.NTXentLoss, {1: (0.1, 1)}, TypeError, "ranges must map names"),
        (pml.NTXentLoss, {"temperature": ("a", "b")}, ValueError, r"must be numbers .* got \('a', 'b'\)"),
        (pml.NTXentLoss, {"temperature": (None, 1)}, ValueError, r"must be numbers .* got \(None, 1\)"),
        (pml.FastAPLoss, {"num_bins": (5, 50)}, ValueError, "read when the loss is built"),
        (pml.FastAPLoss, None, ValueError, "must be given for FastAPLoss; known without: AngularLoss"),
        (lambda: pml.MarginLoss(learn_beta=True), {"beta": (0.5, 1)}, TypeError, "trained by the optimizer"),
        (lambda: pml.SphereFaceLoss(4, 6), {"margin": (1, 8)}, ValueError, "read when the loss is built"),
        (lambda: make("ArcFaceLoss"), {"num_classes": (1, 8)}, ValueError, "read when the loss is built"),
        (lambda: make("ArcFaceLoss"), {"W": (1, 8)}, TypeError, "trained by the optimizer"),
        (lambda: pml.NTXentLoss, {"temperature": (0.01, 1)}, TypeError, "a loss of .* got NTXentLoss"),
    ],
)
def test_errors(make_loss: Any, ranges: Any, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        losses.AdaptPML(make_loss(), ranges)


def test_set_phi_refuses_and_keeps(x: Tensor) -> None:
    loss_fn = losses.AdaptPML(pml.NTXentLoss())
    for bad, match in (
        (torch.ones(2), r"shape \[1\], got \(2,\)"),
        (torch.tensor([float("nan")]), "got nan"),
        (torch.tensor([2.0]), r"temperature must lie in \[0.01, 1.0\], got 2.0"),
    ):
        with pytest.raises(ValueError, match=match):
            loss_fn.set_phi(bad)
        assert loss_fn.loss.temperature == 0.07  # exactly, although phi is float32


# -------------------------------------------------------------------------------------------- statistics
def test_statistics(x: Tensor, labels: Tensor) -> None:
    loss_fn = losses.AdaptPML(pml.MultiSimilarityLoss())
    rows = (x / x.norm(dim=1, keepdim=True)).tolist()
    distance = [[oracle.dist(a, b) for b in rows] for a in rows]
    pairs = [(i, j) for i in range(24) for j in range(24) if i != j]
    same = oracle.mean([distance[i][j] for i, j in pairs if labels[i] == labels[j]])
    other = oracle.mean([distance[i][j] for i, j in pairs if labels[i] != labels[j]])
    found = loss_fn.statistics(x, labels)
    assert found.shape == (3, 3)
    assert torch.equal(found, found[:1].expand(3, 3))
    # 24 rows of 4 classes, 4 of each class a batch: the 6th and last two rows of each class are left out
    assert found[0].tolist() == pytest.approx([same, other, loss_fn(x[:16], labels[:16]).item()], rel=1e-5)


def test_the_loss_value_of_many_classes_is_a_mean_over_balanced_batches() -> None:
    labels = torch.arange(50).repeat_interleave(9)[torch.randperm(450)]
    x = torch.randn(450, 6)
    expected = []
    for turn in range(2):
        for part in (range(25), range(25, 50)):
            rows = torch.cat([(labels == c).nonzero()[4 * turn : 4 * turn + 4, 0] for c in part])
            expected.append(pml.ContrastiveLoss()(x[rows], labels[rows]).item())
    loss_fn = losses.AdaptPML(pml.ContrastiveLoss())
    assert loss_fn.statistics(x, labels)[0, 2].item() == pytest.approx(oracle.mean(expected), rel=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_statistics_of_almost_nothing(rows: int) -> None:
    found = losses.AdaptPML(pml.NTXentLoss()).statistics(torch.randn(rows, 3), torch.arange(rows))
    assert found[:, [0, 2]].tolist() == [[0, 0]]


def test_no_loss_value_where_proxies_know_other_classes(x: Tensor, labels: Tensor) -> None:
    unseen = labels + 100
    assert losses.AdaptPML(make("ArcFaceLoss")).statistics(x, unseen)[0, 2] == 0
    asked = losses.AdaptPML(make("ArcFaceLoss"), loss_statistic=True).statistics(x, labels)
    assert asked[0, 2] > 0
    quiet = losses.AdaptPML(pml.NTXentLoss(), loss_statistic=False).statistics(x, labels)
    assert quiet[0, 2] == 0


def test_statistics_with_a_reducer_that_does_nothing_and_a_loss_with_a_memory(
    x: Tensor, labels: Tensor
) -> None:
    loss_fn = losses.AdaptPML(
        pml.TripletMarginLoss(reducer=reducers.DoNothingReducer()), {"margin": (0.01, 0.5)}
    )
    assert loss_fn.statistics(x, labels)[0, 2] > 0
    assert isinstance(loss_fn(x, labels), dict)
    stateful = losses.AdaptPML(pml.DynamicSoftMarginLoss(), {"momentum": (0.001, 0.1)})
    stateful(x, labels)
    kept = stateful.loss.hist_.clone()
    assert stateful.statistics(x, labels).isfinite().all()
    assert torch.equal(stateful.loss.hist_, kept)


# ------------------------------------------------------------------------------------------ saved, copied
def test_state_copies_and_direct_writes(name: str, x: Tensor, labels: Tensor) -> None:
    loss_fn = losses.AdaptPML(make(name))
    loss_fn.set_phi(moved(loss_fn))
    expected = loss_fn(x, labels)
    fresh = losses.AdaptPML(make(name))
    buffer = io.BytesIO()
    torch.save(loss_fn.state_dict(), buffer)
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    for twin in (copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn)), fresh):
        assert torch.equal(twin(x, labels), expected)
        twin.set_phi(moved(twin, 0.8))
        assert twin(x, labels) != expected
    assert torch.equal(loss_fn(x, labels), expected)
    fresh.phi.copy_(loss_fn.phi)  # as a broadcast of buffers does
    assert torch.equal(fresh(x, labels), expected)


def test_other_dtypes(x: Tensor, labels: Tensor) -> None:
    for move in ("double", "half", "bfloat16", "float"):
        loss_fn = getattr(losses.AdaptPML(pml.NTXentLoss()), move)()
        assert torch.equal(loss_fn(x, labels), pml.NTXentLoss()(x, labels))


# ---------------------------------------------------------------------------------------------- adapting
def run(loss: Any, steps: int, state: Any = None, mode: str = "paper") -> tuple[ALALoss, Any, Any]:
    torch.manual_seed(1)
    data = torch.randn(24, 5)
    labels = torch.arange(24) % 4
    model = torch.nn.Linear(5, 6)
    loss_fn = ALALoss(
        losses.AdaptPML(loss),
        metrics.RecallAtK((1,)),
        validate=lambda: (model(data).detach(), labels),
        total_steps=60,
        every=3,
        mode=mode,
        seed=5,
    )
    optimizer = torch.optim.SGD([*model.parameters(), *loss_fn.parameters()], lr=0.05)
    if state is not None:
        for part, saved in zip((model, optimizer, loss_fn), state):
            part.load_state_dict(saved)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_fn(model(data), labels).backward()
        optimizer.step()
    return loss_fn, model, optimizer


def test_phi_moves_in_range_and_a_resumed_run_is_the_same(name: str) -> None:
    torch.manual_seed(7)
    inner = make(name)
    whole, model, _ = run(copy.deepcopy(inner), 60)
    seen = torch.tensor([record.phi for record in whole.history])
    assert len(seen) == 19
    for k, spec in enumerate(whole.phi_spec):
        assert len(seen[:, k].unique()) > 2, f"{spec.name} did not move"
        assert all(spec.allows(value, 0.0) for value in seen[:, k].tolist())
    half, *parts = run(copy.deepcopy(inner), 31)
    buffer = io.BytesIO()
    torch.save([part.state_dict() for part in (*parts, half)], buffer)
    buffer.seek(0)
    rest, again, _ = run(copy.deepcopy(inner), 29, torch.load(buffer, weights_only=True))
    assert rest.history == whole.history
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters()))
    attributes = [float(getattr(rest.loss.loss, s.name)) for s in rest.phi_spec]
    assert attributes == pytest.approx(rest.phi.tolist(), rel=1e-6)


@pytest.mark.parametrize("mode", ["fixed", "uniform", "random_walk", "random_static"])
def test_controls(mode: str) -> None:
    assert run(pml.MultiSimilarityLoss(), 9, mode=mode)[0].phi.isfinite().all()


# -------------------------------------------------------------------------------- phi from outside, two views
def test_a_given_spec_keeps_all_but_its_name() -> None:
    given = PhiSpec("t", 0.05, 5.0, "additive", scale=0.1)
    loss_fn = losses.AdaptPML(pml.NTXentLoss(), {"temperature": given})
    assert loss_fn.phi_spec == (PhiSpec("temperature", 0.05, 5.0, "additive", scale=0.1),)


@pytest.mark.parametrize("accelerator", [False, True])
def test_a_replaced_phi_is_followed(
    x: Tensor, labels: Tensor, accelerator: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if accelerator:  # where values of phi are not read
        monkeypatch.setattr(Tensor, "is_cpu", False)
    loss_fn = losses.AdaptPML(pml.NTXentLoss(temperature=0.5), {"temperature": (0.05, 5.0)})
    expected = {value: pml.NTXentLoss(temperature=value)(x, labels) for value in (0.5, 0.25, 2.0)}
    for value in (0.25, 2.0):  # the second tensor may lie where the first did
        found = torch.func.functional_call(loss_fn, {"phi": torch.tensor([value])}, (x, labels))
        assert torch.equal(found, expected[value])
    assert torch.equal(loss_fn(x, labels), expected[0.5])
    loss_fn.phi = torch.tensor([0.25])
    assert torch.equal(loss_fn(x, labels), expected[0.25])
    assert loss_fn.loss.temperature == 0.25
    (loss_fn.phi if accelerator else loss_fn.phi.data).fill_(2.0)
    assert torch.equal(loss_fn(x, labels), expected[2.0])
    loss_fn.phi = torch.tensor([0.25])
    terms = loss_fn.compute_loss(x, labels, None, x, labels)["loss"]["losses"]
    assert torch.equal(terms.mean(), expected[0.25])
    loss_fn.phi = torch.tensor([2.0])
    built = losses.AdaptPML(pml.NTXentLoss(temperature=2.0), {"temperature": (0.05, 5.0)})
    assert torch.equal(loss_fn.statistics(x, labels), built.statistics(x, labels))
    twin = pickle.loads(pickle.dumps(copy.deepcopy(loss_fn)))
    assert torch.equal(twin(x, labels), expected[2.0])


def test_vmap_over_phi_is_refused(x: Tensor, labels: Tensor) -> None:
    loss_fn = losses.AdaptPML(pml.NTXentLoss(), {"temperature": (0.05, 5.0)})
    call = torch.func.vmap(lambda phi: torch.func.functional_call(loss_fn, {"phi": phi}, (x, labels)))
    with pytest.raises(NotImplementedError, match="vmap over phi"):
        call(torch.tensor([[0.1], [0.2]]))


def test_compiled_follows_set_phi(x: Tensor, labels: Tensor) -> None:
    loss_fn = losses.AdaptPML(pml.NTXentLoss(temperature=0.5), {"temperature": (0.05, 5.0)})
    compiled = torch.compile(loss_fn, backend="eager")
    for value in (0.5, 0.25):
        loss_fn.set_phi(torch.tensor([value]))
        torch.testing.assert_close(compiled(x, labels), pml.NTXentLoss(temperature=value)(x, labels))


def test_two_views_adapt(x: Tensor, labels: Tensor) -> None:
    views = losses.SelfSupervisedLoss(losses.DistanceMixtureLoss())
    assert isinstance(views, AdaptiveLoss)
    assert views.statistics(x, labels).shape == (10, 1)
    loss_fn = ALALoss(
        views, metrics.RecallAtK((1,)), validate=lambda: (x, labels), total_steps=20, every=2, seed=0
    )
    before = loss_fn.phi.clone()
    for _ in range(20):
        loss_fn(x.clone().requires_grad_(), x.flip(1)).backward()
    assert loss_fn.phi is views.loss.phi
    assert not torch.equal(loss_fn.phi, before)
    assert not isinstance(losses.SelfSupervisedLoss(pml.NTXentLoss()), AdaptiveLoss)
    assert losses.SelfSupervisedLoss(pml.NTXentLoss())(x, x.flip(1)).isfinite()
