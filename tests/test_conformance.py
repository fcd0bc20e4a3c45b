"""Every loss of ours keeps the promises of pytorch-metric-learning's losses, and theirs do as a control."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pytorch_metric_learning import losses as pml

from ala_metric import ALALoss, losses, metrics

from .conformance_whole import CHECKS, Make
from .conftest import implementations

PHI = (0.9, 0.3, 0.7, 0.2, 0.8, 0.8, 0.4, 0.6, 0.5, 0.1)


def mixture(impl: str) -> Make:
    return lambda **kwargs: losses.DistanceMixtureLoss(PHI, impl=impl, **kwargs)


def focal(impl: str) -> Make:
    return lambda **kwargs: losses.FocalWeightingLoss(impl=impl, **kwargs)


def adapted(loss: Callable[..., Any], **ranges: Any) -> Make:
    return lambda **kwargs: losses.AdaptPML(loss(**kwargs), ranges or None)


def ala(make: Make) -> Make:
    return lambda **kwargs: ALALoss(
        make(**kwargs), metrics.RecallAtK((1,)), validate=_nothing, total_steps=10**6, every=10**6
    )


def _nothing() -> Any:
    raise AssertionError("too early")


# Hinges are wide open, so that every pair has a gradient.
def contrastive(**kwargs: Any) -> Any:
    return pml.ContrastiveLoss(pos_margin=0, neg_margin=2.5, **kwargs)


def triplet(**kwargs: Any) -> Any:
    return pml.TripletMarginLoss(margin=2.5, **kwargs)


MAKE: dict[str, Make] = {
    "adapted contrastive": adapted(contrastive, neg_margin=(1.0, 3.0)),
    "adapted multi-similarity": adapted(pml.MultiSimilarityLoss),
    "ALA mixture": ala(mixture("auto")),
    "ALA adapted triplet": ala(adapted(triplet, margin=(1.5, 3.0))),
    "PML contrastive": contrastive,
    "PML triplet": triplet,
    "PML multi-similarity": pml.MultiSimilarityLoss,
}
CASES = [pytest.param(make, id=name) for name, make in MAKE.items()]
for _impl in implementations():
    _name, _marks = (_impl, ()) if isinstance(_impl, str) else (_impl.values[0], _impl.marks)
    CASES += [
        pytest.param(mixture(_name), id=f"mixture {_name}", marks=_marks),
        pytest.param(focal(_name), id=f"focal {_name}", marks=_marks),
    ]


# Where their losses break a promise that ours keep; strict, so that a repair of theirs is noticed.
THEIRS = {
    "terms_are_unreduced_and_indexed": {"multi-similarity": "losses of shape [N, 1]"},
    "half_the_lists_may_be_empty": {"multi-similarity": "an empty list of floats is no index there"},
    "half_precision": {
        "contrastive": "torch.cdist on CPU has no bfloat16",
        "triplet": "torch.cdist on CPU has no bfloat16",
    },
}


@pytest.mark.parametrize("make", CASES)
@pytest.mark.parametrize("check", CHECKS)
def test_conformance(check: str, make: Make, request: pytest.FixtureRequest) -> None:
    for name, reason in THEIRS.get(check, {}).items():
        if name in request.node.callspec.id:
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    CHECKS[check](make)
