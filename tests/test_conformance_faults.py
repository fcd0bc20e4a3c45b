"""The conformance suite sees what it is there for: the check meant for each planted fault catches it."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor

from ala_metric.losses import DistanceMixtureLoss

from .conformance_whole import CHECKS

PHI = (0.9, 0.3, 0.7, 0.2, 0.8, 0.8, 0.4, 0.6, 0.5, 0.1)


class Sound(DistanceMixtureLoss):
    """Nothing is wrong with this one; the faults are planted into it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(PHI, impl="strips", **kwargs)


class ReducedInside(Sound):
    def per_anchor(self, losses: Tensor) -> Any:
        return {"loss": {"losses": losses.mean(), "indices": None, "reduction_type": "already_reduced"}}


class Columns(Sound):
    def per_anchor(self, losses: Tensor) -> Any:
        found = super().per_anchor(losses)
        found["loss"]["losses"] = losses[:, None]
        return found


class WrongAnchors(Sound):
    def per_anchor(self, losses: Tensor) -> Any:
        found = super().per_anchor(losses)
        found["loss"]["indices"] = found["loss"]["indices"].flip(0)
        return found


class IgnoresReferences(Sound):
    def compute_loss(self, x: Tensor, labels: Any, indices: Any, y: Tensor, ref_labels: Any) -> Any:
        return super().compute_loss(x, labels, indices, x, labels)


class IgnoresReferenceLabels(Sound):
    def compute_loss(self, x: Tensor, labels: Any, indices: Any, y: Tensor, ref_labels: Any) -> Any:
        return super().compute_loss(x, labels, indices, y, None if labels is None else labels[: len(y)])


class SkipsTheDiagonal(Sound):
    """Takes row i of the references for row i of the batch."""

    def all_pairs_of_matrix(self, matrix: Tensor, positive: Tensor, negative: Tensor, phi: Tensor) -> Any:
        off = ~torch.eye(*matrix.shape, dtype=torch.bool)
        return super().all_pairs_of_matrix(matrix, positive & off, negative & off, phi)

    def all_pairs(self, x: Tensor, labels: Any, y: Any, ref_labels: Any, phi: Tensor) -> Any:
        z, names = (x, labels) if y is None else (y, ref_labels)
        same = labels[:, None] == names
        return self.all_pairs_of_matrix((x[:, None] - z).norm(dim=2), same, ~same, phi)


class PairsWithItself(SkipsTheDiagonal):
    def all_pairs_of_matrix(self, matrix: Tensor, positive: Tensor, negative: Tensor, phi: Tensor) -> Any:
        return Sound.all_pairs_of_matrix(self, matrix, positive, negative, phi)


class IgnoresIndices(Sound):
    def compute_loss(self, x: Tensor, labels: Any, indices: Any, y: Tensor, ref_labels: Any) -> Any:
        return super().compute_loss(x, labels, None, y, ref_labels)


class LooksUpReferencesInTheBatch(Sound):
    def compute_loss(self, x: Tensor, labels: Any, indices: Any, y: Tensor, ref_labels: Any) -> Any:
        mined = indices is not None
        return super().compute_loss(x, labels, indices, x if mined else y, labels if mined else ref_labels)


class CutsTheGraph(Sound):
    def zero_loss(self) -> Any:
        zero = torch.zeros((), requires_grad=True)
        return {"losses": zero, "indices": None, "reduction_type": "already_reduced"}


class NoPairsIsNan(Sound):
    def compute_loss(self, x: Tensor, labels: Any, indices: Any, y: Tensor, ref_labels: Any) -> Any:
        found = super().compute_loss(x, labels, indices, y, ref_labels)
        for term in found.values():
            if isinstance(term["losses"], Tensor):
                term["losses"] = term["losses"] + (term["losses"] * 0).sum() / (len(x) - 1)
        return found


class LabelsStayElsewhere(Sound):
    def forward(self, embeddings: Tensor, labels: Any = None, *args: Any, **kwargs: Any) -> Any:
        if labels is not None:
            labels = labels[:]
        return super().forward(embeddings, labels, *args, **kwargs)


class NarrowLabels(Sound):
    def all_pairs(self, x: Tensor, labels: Any, y: Any, ref_labels: Any, phi: Tensor) -> Any:
        names = None if ref_labels is None else ref_labels.float().long()
        return super().all_pairs(x, labels.float().long(), y, names, phi)


class _Unscaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.full_like(grad, 1 / len(grad))


class IgnoresGradOutput(Sound):
    def per_anchor(self, losses: Tensor) -> Any:
        return super().per_anchor(_Unscaled.apply(losses))


class HalfTheGradient(Sound):
    """As if the gradient of an anchor were forgotten in its role as a reference."""

    def all_pairs(self, x: Tensor, labels: Any, y: Any, ref_labels: Any, phi: Tensor) -> Any:
        return super().all_pairs(0.5 * x + 0.5 * x.detach(), labels, y, ref_labels, phi)


class SquaresInHalf(Sound):
    def forward(self, embeddings: Tensor, *args: Any, **kwargs: Any) -> Any:
        square = (embeddings * embeddings).to(embeddings.dtype)
        return super().forward(embeddings, *args, **kwargs) + 0 * square.sum()


class ReadsTheStorage(Sound):
    def compute_loss(self, x: Tensor, labels: Any, indices: Any, y: Tensor, ref_labels: Any) -> Any:
        own = y is x
        x = x.as_strided(x.shape, (x.shape[1], 1))
        return super().compute_loss(x, labels, indices, x if own else y, ref_labels)


class NormalisesInPlace(Sound):
    def forward(self, embeddings: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            embeddings.detach().mul_(1.5)
        return super().forward(embeddings, *args, **kwargs)


class Remembers(Sound):
    calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return super().forward(*args, **kwargs) * self.calls


class ForgetsItsParameters(Sound):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: v for name, v in super().state_dict(*args, **kwargs).items() if name != "phi"}

    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict(state, strict=False)


class LeavesParametersBehind(Sound):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table = torch.ones(3)


class SharesParameters(Sound):
    def __deepcopy__(self, memo: Any) -> Any:
        twin = type(self)()
        twin.phi = self.phi
        return twin


class DropsTheRegularizer(Sound):
    def __init__(self, embedding_regularizer: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class AlwaysFloat32(Sound):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        value = super().forward(*args, **kwargs)
        return value.float() if isinstance(value, Tensor) else value


class NeedsNoLabels(Sound):
    def compute_loss(self, x: Tensor, labels: Any, indices: Any, y: Tensor, ref_labels: Any) -> Any:
        if labels is None and indices is None:
            labels = ref_labels = torch.arange(len(x))
        return super().compute_loss(x, labels, indices, y, ref_labels)


class TooFewTerms(Sound):
    """Drops the negative pairs that a miner lists when it lists no positive ones."""

    def mined(self, pairs: Any, indices: Any, phi: Tensor) -> Any:
        if indices[0].numel() == 0:
            nan = float("nan") * pairs.x[:1, 0]
            return {"loss": {"losses": nan, "indices": torch.zeros(1), "reduction_type": "element"}}
        return super().mined(pairs, indices, phi)


class NamesAnotherDistance(Sound):
    """Says that it compares squared distances."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        own, self.distance = self.distance, LpDistance()
        try:
            return super().forward(*args, **kwargs)
        finally:
            self.distance = own

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.distance = LpDistance(power=2)


class KeepsStateInTheClass(Sound):
    made: ClassVar[list[int]] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.made.append(1)
        return super().forward(*args, **kwargs) * (1 + len(self.made) % 3)


class TakesHalvesForViews(Sound):
    """Looks for the others of mined rows in the first half of the batch."""

    def mined(self, pairs: Any, indices: Any, phi: Tensor) -> Any:
        half = len(pairs.x) // 2
        anchors, *others = indices
        return super().mined(pairs, (anchors, *(v % half for v in others)), phi)


CAUGHT_BY: dict[type, str] = {
    ReducedInside: "terms_are_unreduced_and_indexed reducers_reduce",
    Columns: "terms_are_unreduced_and_indexed",
    WrongAnchors: "terms_belong_to_their_anchors",
    IgnoresReferences: "references_are_the_others",
    IgnoresReferenceLabels: "references_are_the_others",
    SkipsTheDiagonal: "references_are_the_others",
    PairsWithItself: "a_row_is_no_pair_with_itself",
    IgnoresIndices: "miners_decide no_pairs_is_a_zero_with_a_graph",
    LooksUpReferencesInTheBatch: "mined_references_are_rows_of_ref_emb",
    CutsTheGraph: "no_pairs_is_a_zero_with_a_graph",
    NoPairsIsNan: "no_pairs_is_a_zero_with_a_graph",
    LabelsStayElsewhere: "labels_of_another_device_are_moved",
    NarrowLabels: "labels_of_any_integer_dtype",
    IgnoresGradOutput: "gradients_scale_with_grad_output",
    HalfTheGradient: "gradients_are_right",
    SquaresInHalf: "half_precision",
    ReadsTheStorage: "any_memory_layout",
    NormalisesInPlace: "arguments_are_left_alone",
    Remembers: "arguments_are_left_alone",
    ForgetsItsParameters: "copies_are_equal_and_their_own",
    LeavesParametersBehind: "moving_the_module_moves_all_of_it",
    SharesParameters: "copies_are_equal_and_their_own",
    DropsTheRegularizer: "regularizers_add",
    AlwaysFloat32: "the_value_is_a_scalar_of_the_embeddings_dtype",
    NeedsNoLabels: "wrong_arguments_are_refused",
    TooFewTerms: "half_the_lists_may_be_empty",
    NamesAnotherDistance: "used_for_inference",
    KeepsStateInTheClass: "trained_in_a_cascade trained_with_a_classifier",
    TakesHalvesForViews: "trained_on_two_streams",
}


def caught_by(fault: type, checks: str) -> set[str]:
    found = set()
    for name in checks.split():
        try:
            CHECKS[name](fault)
        except Exception:
            found.add(name)
    return found


@pytest.mark.parametrize("fault", CAUGHT_BY, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught(fault: type) -> None:
    checks = CAUGHT_BY[fault]
    assert caught_by(Sound, checks) == set()
    assert caught_by(fault, checks) == set(checks.split())
