"""Metrics of classifiers: error, balanced error and area under the precision-recall curve."""

from __future__ import annotations

import warnings
from typing import Literal

import torch

from .._arguments import what_it_is


class ClassificationError:
    """Share of wrongly classified samples.

    A sample is right when its target's logit is strictly above all others; a tie is an error, so
    constant outputs score 1, not ``1 - 1/C``.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 3.0], [5.0, 0.0]])
    >>> ClassificationError()(logits, torch.tensor([0, 1, 0, 1]))
    0.5
    """

    name = "classification_error"
    higher_is_better = False

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """Evaluate the error.

        Parameters
        ----------
        outputs
            ``[N, C]`` logits of any floating dtype; ``-inf`` rules a class out.
        targets
            ``[N]`` integers in ``[0, C)``.

        Returns
        -------
        float
            In [0, 1].

        Raises
        ------
        ValueError
            If there are no samples or fewer than two classes, shapes disagree, a target is out of range,
            or a row of logits has no softmax (NaN, ``+inf``, or ``-inf`` throughout).
        TypeError
            If either is no tensor, logits are not floating point or targets not integers.
        """
        return float(_wrong(*_checked(outputs, targets)).double().mean())


class BalancedError:
    """Mean over the classes of the share of the class that is classified wrongly.

    ``M = mean_c |{d : y_d = c, prediction_d != c}| / |{d : y_d = c}|``, one minus the macro-averaged recall.
    Classes without samples are left out of the mean. Ties are errors, as in :class:`ClassificationError`.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 1.0], [2.0, 1.0], [2.0, 1.0], [2.0, 1.0]])
    >>> BalancedError()(logits, torch.tensor([0, 0, 0, 1]))
    0.5
    """

    name = "balanced_error"
    higher_is_better = False

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """Evaluate the balanced error; arguments and errors as in :class:`ClassificationError`."""
        logits, targets = _checked(outputs, targets)
        count = torch.bincount(targets)
        wrong = torch.bincount(targets, weights=_wrong(logits, targets).double())
        return float((wrong / count)[count > 0].mean())


class AUCPR:
    """Area under the precision-recall curve, one class against all others, as average precision.

    Average precision is ``AP = sum_n (R_n - R_{n-1}) P_n`` over the distinct scores in descending order
    (never the trapezoid, which is optimistic); equal scores enter together. Samples are ranked by
    ``log(p / (1 - p))``, the logit against the log-sum-exp of all others in float64: probabilities that
    round to 0 or to 1 stay apart.

    Parameters
    ----------
    average
        ``"macro"``: mean of AP over the classes. A class without samples has no AP: it is left out, with
        a warning. ``"micro"``: one AP over all N x C decisions.

    Raises
    ------
    ValueError
        If ``average`` is neither.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 0.0], [0.5, 0.0], [1.0, 0.0], [0.0, 3.0]])
    >>> round(AUCPR()(logits, torch.tensor([0, 0, 1, 1])), 6)
    0.833333
    """

    higher_is_better = True

    def __init__(self, average: Literal["macro", "micro"] = "macro") -> None:
        if average not in ("macro", "micro"):
            raise ValueError(f"average must be 'macro' or 'micro', got {average!r}")
        self.average = average
        self.name = "aucpr" if average == "macro" else "aucpr_micro"

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """Evaluate the area; arguments and errors as in :class:`ClassificationError`."""
        logits, targets = _checked(outputs, targets)
        scores = _log_odds(logits.double())
        if self.average == "micro":
            positives = scores.gather(1, targets[:, None]).flatten()
            return _average_precision(scores.flatten(), positives)
        present = targets.unique()
        if absent := logits.shape[1] - len(present):
            warnings.warn(
                f"AUCPR: {absent} of {logits.shape[1]} classes have no sample and are left out of the mean",
                stacklevel=2,
            )
        areas = [
            _average_precision(scores[:, c].contiguous(), scores[targets == c, c]) for c in present.tolist()
        ]
        return sum(areas) / len(areas)


def _checked(outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and int64 targets on the CPU, or an error that says what is wrong with them."""
    for name, value in (("outputs", outputs), ("targets", targets)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, got {what_it_is(value)}")
    if outputs.ndim != 2 or outputs.shape[0] < 1 or outputs.shape[1] < 2:
        raise ValueError(f"outputs must be [N, C] logits with N >= 1 and C >= 2, got {list(outputs.shape)}")
    if not outputs.is_floating_point():
        raise TypeError(f"outputs must be floating-point logits, got {outputs.dtype}")
    if targets.shape != outputs.shape[:1]:
        raise ValueError(f"targets must be [{len(outputs)}], got {list(targets.shape)}")
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise TypeError(f"targets must be integers, got {targets.dtype}")
    outputs, targets = outputs.detach().cpu(), targets.detach().cpu().long()
    if bad := int((~torch.isfinite(outputs.amax(1))).sum()):
        raise ValueError(f"outputs have no softmax (NaN or infinite) in {bad} of {len(outputs)} rows")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= outputs.shape[1]:
        raise ValueError(f"targets must lie in [0, {outputs.shape[1]}), got {low} to {high}")
    return outputs, targets


def _wrong(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Whether another class has at least the target's logit."""
    best = logits.topk(2, 1).values
    return (best[:, 0] == best[:, 1]) | (logits.gather(1, targets[:, None])[:, 0] < best[:, 0])


def _log_odds(logits: torch.Tensor) -> torch.Tensor:
    """``x_c - log sum_{k != c} exp x_k`` [N, C]; Inf where all other classes are ruled out."""
    below = logits - logits.amax(1, keepdim=True)
    ordered = below.sort(1).values  # so that rows which are permutations of each other tie
    of_best = -ordered[:, :-1].logsumexp(1, keepdim=True)
    # the sum of all less one's own share is at least 1, except for the best
    others = ordered.exp().sum(1, keepdim=True) - below.exp()
    return torch.where(below == 0, of_best, below - others.log())


def _average_precision(scores: torch.Tensor, positives: torch.Tensor) -> float:
    """Mean over the positives of the precision among all scores that are at least the positive's own."""
    thresholds = positives.sort().values
    reached = torch.bincount(
        torch.searchsorted(thresholds, scores, right=True), minlength=len(thresholds) + 1
    )
    retrieved = reached.flip(0).cumsum(0).flip(0)[1:]
    hits = len(thresholds) - torch.searchsorted(thresholds, thresholds)
    return float((hits.double() / retrieved).mean())
