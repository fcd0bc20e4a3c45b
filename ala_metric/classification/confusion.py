"""Soft class confusions: how unlikely the model finds class j on samples of class i (Eq. 7)."""

from __future__ import annotations

import math

import torch

from .._arguments import integer, what_it_is

ROUNDING = 1e-3  # how far above 0 a log-probability may be
CACHED = 1 << 16  # numbers of a block of rows that stays in the cache


class StreamingConfusion:
    """The sums of Eq. 7, ``C_ij = total_ij / count_i``, collected batch by batch.

    ``total`` and ``count`` are plain sums: add those of several processes before :meth:`compute`.

    Parameters
    ----------
    num_classes
        C.
    device
        Where the sums live, ``[C, C]`` and ``[C]``.

    Raises
    ------
    ValueError
        If ``num_classes`` is less than 1.
    TypeError
        If it is no integer.

    Examples
    --------
    >>> log_probs = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]]).log()
    >>> targets = torch.tensor([0, 0, 1])
    >>> stream = StreamingConfusion(2)
    >>> for row in range(3):
    ...     stream.update(log_probs[row : row + 1], targets[row : row + 1])
    >>> torch.allclose(stream.compute(), class_confusion(log_probs, targets, 2))
    True
    """

    def __init__(self, num_classes: int, device: torch.device | str | None = None) -> None:
        num_classes = integer("num_classes", num_classes)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.total = torch.zeros(num_classes, num_classes, dtype=torch.float64, device=device)
        self.count = torch.zeros(num_classes, dtype=torch.int64, device=device)

    def update(self, log_probs: torch.Tensor, targets: torch.Tensor) -> None:
        """Add a batch.

        Parameters
        ----------
        log_probs
            ``[N, C]`` log-probabilities of any floating dtype; summed in float64.
        targets
            ``[N]`` integers in ``[0, C)``.

        Raises
        ------
        ValueError
            If a shape is wrong, a target is out of range, or a log-probability is NaN or positive: logits
            and probabilities are refused.
        TypeError
            If something is no tensor, or the dtypes are wrong.
        """
        check_batch("log_probs", log_probs, targets, self.num_classes)
        targets = targets.long()
        check_targets(targets, self.num_classes)
        if log_probs.numel():
            _check_log_probs(log_probs.detach())
        size = max(1, CACHED // self.num_classes)
        for rows, labels in zip(log_probs.detach().split(size), targets.split(size)):
            self.add(rows.double(), labels)

    def add(self, log_probs: torch.Tensor, targets: torch.Tensor) -> None:
        """The same for float64 and int64 that were checked."""
        self.total.index_add_(0, targets, log_probs, alpha=-1)
        self.count += torch.bincount(targets, minlength=self.num_classes)

    def compute(self) -> torch.Tensor:
        """``[C, C]`` float64 confusions of everything added so far; see :func:`class_confusion`."""
        return self.total / self.count.clamp_min(1)[:, None]


def class_confusion(log_probs: torch.Tensor, targets: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Mean negative log-probability of class j over the samples of class i (Eq. 7).

    ``C_ij = sum_d -[y_d = i] log f^j(x_d) / sum_d [y_d = i]``. The diagonal holds each class's
    cross-entropy; a *small* off-diagonal entry means that the model confuses i with j.

    Parameters
    ----------
    log_probs
        ``[N, C]`` log-probabilities, not logits. ``-inf`` is allowed and makes its entry ``+inf``.
    targets
        ``[N]`` integers in ``[0, C)``.
    num_classes
        C.

    Returns
    -------
    torch.Tensor
        ``[C, C]`` float64. The row of a class without samples is 0.

    Raises
    ------
    ValueError
        If a shape is wrong, a target is out of range, or a log-probability is NaN or positive: logits and
        probabilities are refused.
    TypeError
        If something is no tensor, the dtypes are wrong, or ``num_classes`` is no integer.

    Examples
    --------
    >>> log_probs = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], dtype=torch.float64).log()
    >>> (class_confusion(log_probs, torch.tensor([0, 1]), 3) / torch.tensor(2.0).log()).round()
    tensor([[1., 2., 2.],
            [2., 1., 2.],
            [0., 0., 0.]], dtype=torch.float64)
    """
    stream = StreamingConfusion(num_classes, log_probs.device)
    stream.update(log_probs, targets)
    return stream.compute()


def _check_log_probs(log_probs: torch.Tensor) -> None:
    """What no log-probabilities are; above 0 by rounding only."""
    largest = float(log_probs.amax())
    if math.isnan(largest):
        bad = int(log_probs.isnan().any(1).sum())
        raise ValueError(f"log_probs must not be NaN, got NaN in {bad} of {len(log_probs)} rows")
    if largest > max(ROUNDING, 2 * torch.finfo(log_probs.dtype).eps):
        raise ValueError(
            f"log_probs must be <= 0 (log-probabilities, not logits or probabilities), got up to {largest}"
        )


def check_tensors(**named: object) -> None:
    """TypeError unless all are tensors."""
    for name, given in named.items():
        if not isinstance(given, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, got {what_it_is(given)}")


def check_batch(name: str, scores: torch.Tensor, targets: torch.Tensor, num_classes: int) -> None:
    """Types, shapes and dtypes of a batch; reads no values."""
    check_tensors(**{name: scores}, targets=targets)
    if scores.ndim != 2 or scores.shape[1] != num_classes:
        raise ValueError(f"{name} must be [N, {num_classes}], got {list(scores.shape)}")
    if not scores.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {scores.dtype}")
    if targets.shape != scores.shape[:1]:
        raise ValueError(f"targets must be [{scores.shape[0]}], got {list(targets.shape)}")
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise TypeError(f"targets must be integer class numbers, got {targets.dtype}")


def check_targets(targets: torch.Tensor, num_classes: int) -> None:
    """Range of the int64 targets."""
    if not targets.numel():
        return
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"targets must lie in [0, {num_classes}), got {low} to {high}")


def check_readable_targets(targets: torch.Tensor, num_classes: int) -> None:
    """The same, but only eager, on the CPU and outside vmap: elsewhere values are slow or unknown."""
    if targets.device.type == "cpu" and not torch.compiler.is_compiling() and not _is_batched(targets):
        check_targets(targets, num_classes)


def _is_batched(x: torch.Tensor) -> bool:
    """Whether vmap runs over ``x``, maybe inside of torch.func.grad."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        if torch._C._functorch.is_batchedtensor(x):
            return True
        x = torch._C._functorch.get_unwrapped(x)
    return False
