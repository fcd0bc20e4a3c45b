"""The fused kernels for NumPy arrays; torch is neither needed nor imported.

The nouns and equations are those of :mod:`ala_metric.ops`. Arrays may have any strides; float16 and float32
are computed, and returned, in float32, float64 in float64. NaN and Inf in the input come out as NaN or Inf;
only :func:`positive_ranks` refuses them.
"""

from __future__ import annotations

import os
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _native

_module = _native.load_numpy_module()

_MOST_THREADS = 64  # on fewer cores, more threads cost memory only

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]


class LossGradient(NamedTuple):
    """Losses, and the gradient of their (weighted) sum.

    Parameters
    ----------
    loss
        Loss per anchor, shape [N], not weighted.
    emb, ref_emb, phi
        Gradients, shaped like the arguments of the same names; ``ref_emb`` is None without references.
    """

    loss: Floats
    emb: Floats
    ref_emb: Floats | None
    phi: Floats


def pairwise_distance(x: ArrayLike, y: ArrayLike | None = None, *, threads: int | None = None) -> Floats:
    r"""Euclidean distances of all rows of ``x`` to all rows of ``y`` (or of ``x``).

    .. math:: d_{ij} = \lVert x_i - y_j \rVert_2

    Parameters
    ----------
    x, y
        Shapes [N, D] and [M, D], float16, float32 or float64, both the same.
    threads
        Most threads to use; all of this process' cores by default. The result does not depend on it.

    Returns
    -------
    numpy.ndarray
        Shape [N, M], in units of ``x``; float64 for float64 input, else float32.

    Raises
    ------
    TypeError, ValueError
        For arguments of a wrong dtype or shape.

    Examples
    --------
    >>> from ala_metric import numpy_api
    >>> numpy_api.pairwise_distance([[0.0, 0.0], [3.0, 4.0]])
    array([[0., 5.],
           [5., 0.]])
    """
    points = _points(x, "x")
    others = None if y is None else _references(y, points, "y", "x")
    result: Floats = _module.pairwise_distance(points, others, _threads(threads))
    return result


def distance_mixture(
    emb: ArrayLike,
    labels: ArrayLike,
    phi: ArrayLike,
    *,
    ref_emb: ArrayLike | None = None,
    ref_labels: ArrayLike | None = None,
    threads: int | None = None,
) -> Floats:
    r"""Distance-mixture loss of every anchor (Huang et al., ICML 2019, Eq. 9).

    .. math::
        l_i = \frac{1}{|P_i|} \sum_{p \in P_i} \sum_{k=1}^{5} \phi_k F^+_k(d_{ip})
            + \frac{1}{|N_i|} \sum_{n \in N_i} \sum_{k=1}^{5} \phi_{k+5} F^-_k(d_{in})

    The functions are listed at :func:`ala_metric.ops.distance_mixture`.

    Parameters
    ----------
    emb, labels
        Anchors, shape [N, D], and their classes, shape [N], any integer dtype.
    phi
        Weights, shape [10]: five for positive pairs, then five for negative pairs.
    ref_emb, ref_labels
        References, shapes [M, D] and [M]; without them the batch, less each row's pair with itself.
    threads
        Most threads to use; all of this process' cores by default. The result does not depend on it.

    Returns
    -------
    numpy.ndarray
        Loss per anchor, shape [N], unitless; float64 for float64 input, else float32.

    Raises
    ------
    TypeError, ValueError
        For arguments of a wrong dtype or shape.

    Examples
    --------
    >>> from ala_metric import numpy_api
    >>> phi = [1, 0, 0, 0, 0, 0, 1, 0, 0, 0]  # d^2 for positives, 2 - d for negatives
    >>> numpy_api.distance_mixture([[0.0], [1.0], [3.0]], [0, 0, 1], phi)
    array([ 0. ,  1. , -0.5])
    """
    batch = _batch(emb, labels, ref_emb, ref_labels)
    result: Floats = _mixture(batch, phi, None, False, threads)[0]
    return result


def distance_mixture_gradient(
    emb: ArrayLike,
    labels: ArrayLike,
    phi: ArrayLike,
    *,
    ref_emb: ArrayLike | None = None,
    ref_labels: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    threads: int | None = None,
) -> LossGradient:
    r"""Distance-mixture loss and its gradient, from one pass.

    .. math:: \nabla \sum_i w_i l_i

    with the losses of :func:`distance_mixture`; the gradient of the mean loss takes weights 1 / N.

    Parameters
    ----------
    emb, labels, phi, ref_emb, ref_labels, threads
        As for :func:`distance_mixture`.
    weights
        Weight of each anchor, shape [N]; all 1 by default.

    Returns
    -------
    LossGradient
        ``loss`` [N], and gradients ``emb`` [N, D], ``ref_emb`` [M, D] or None, ``phi`` [10].

    Raises
    ------
    TypeError, ValueError
        For arguments of a wrong dtype or shape.

    Examples
    --------
    >>> from ala_metric import numpy_api
    >>> phi = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]  # d^2 of positive pairs
    >>> numpy_api.distance_mixture_gradient([[0.0], [1.0]], [5, 5], phi).emb
    array([[-4.],
           [ 4.]])
    """
    batch = _batch(emb, labels, ref_emb, ref_labels)
    return LossGradient(*_mixture(batch, phi, weights, True, threads))


def focal_weighting(
    emb: ArrayLike,
    labels: ArrayLike,
    phi: ArrayLike,
    *,
    offset: float = 1.0,
    ref_emb: ArrayLike | None = None,
    ref_labels: ArrayLike | None = None,
    threads: int | None = None,
) -> Floats:
    r"""Focal-weighting loss of every anchor (Huang et al., ICML 2019, Eq. 10).

    .. math::
        l_i = \frac{1}{\phi_1} \log\Big[1 + \sum_{p \in P_i} e^{\phi_1 (d_{ip} - \alpha)}\Big]
            + \frac{1}{\phi_2} \log\Big[1 + \sum_{n \in N_i} e^{-\phi_2 (d_{in} - \alpha)}\Big]

    Parameters
    ----------
    emb, labels, ref_emb, ref_labels, threads
        As for :func:`distance_mixture`.
    phi
        The two sharpnesses, shape [2], > 0, in 1 / distance.
    offset
        The distance offset :math:`\alpha`.

    Returns
    -------
    numpy.ndarray
        Loss per anchor, shape [N], in units of distance; float64 for float64 input, else float32.

    Raises
    ------
    TypeError, ValueError
        For arguments of a wrong dtype or shape, and for phi <= 0.

    Examples
    --------
    >>> from ala_metric import numpy_api
    >>> numpy_api.focal_weighting([[0.0], [1.0], [3.0]], [0, 0, 1], [1.0, 1.0]).round(4)
    array([0.8201, 1.0064, 0.4076])
    """
    batch = _batch(emb, labels, ref_emb, ref_labels)
    result: Floats = _focal(batch, phi, offset, None, False, threads)[0]
    return result


def focal_weighting_gradient(
    emb: ArrayLike,
    labels: ArrayLike,
    phi: ArrayLike,
    *,
    offset: float = 1.0,
    ref_emb: ArrayLike | None = None,
    ref_labels: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    threads: int | None = None,
) -> LossGradient:
    r"""Focal-weighting loss and its gradient.

    .. math:: \nabla \sum_i w_i l_i

    with the losses of :func:`focal_weighting`; the gradient of the mean loss takes weights 1 / N.

    Parameters
    ----------
    emb, labels, phi, offset, ref_emb, ref_labels, threads
        As for :func:`focal_weighting`.
    weights
        Weight of each anchor, shape [N]; all 1 by default.

    Returns
    -------
    LossGradient
        ``loss`` [N], and gradients ``emb`` [N, D], ``ref_emb`` [M, D] or None, ``phi`` [2].

    Raises
    ------
    TypeError, ValueError
        For arguments of a wrong dtype or shape, and for phi <= 0.

    Examples
    --------
    >>> from ala_metric import numpy_api
    >>> numpy_api.focal_weighting_gradient([[0.0], [1.0]], [5, 5], [1.0, 1.0]).emb
    array([[-1.],
           [ 1.]])
    """
    batch = _batch(emb, labels, ref_emb, ref_labels)
    return LossGradient(*_focal(batch, phi, offset, weights, True, threads))


def distance_statistics(
    emb: ArrayLike,
    labels: ArrayLike,
    *,
    ref_emb: ArrayLike | None = None,
    ref_labels: ArrayLike | None = None,
    threads: int | None = None,
) -> Floats:
    r"""Means of the ten distance functions over all positive and all negative pairs.

    .. math::
        s_k = \frac{1}{|P|} \sum_{(i, p) \in P} F^+_k(d_{ip}), \qquad
        s_{k+5} = \frac{1}{|N|} \sum_{(i, n) \in N} F^-_k(d_{in})

    Parameters
    ----------
    emb, labels, ref_emb, ref_labels, threads
        As for :func:`distance_mixture`.

    Returns
    -------
    numpy.ndarray
        Shape [10], unitless, 0 where there is no such pair; float64 for float64 input, else float32.

    Raises
    ------
    TypeError, ValueError
        For arguments of a wrong dtype or shape.

    Examples
    --------
    >>> from ala_metric import numpy_api
    >>> numpy_api.distance_statistics([[0.0], [1.0], [3.0]], [0, 0, 1])[:2]
    array([1., 1.])
    """
    points, classes, references, ref_classes = _batch(emb, labels, ref_emb, ref_labels)
    result: Floats = _module.distance_statistics(points, classes, references, ref_classes, _threads(threads))
    return result


@overload
def positive_ranks(
    emb: ArrayLike,
    labels: ArrayLike,
    *,
    ref_emb: ArrayLike | None = ...,
    ref_labels: ArrayLike | None = ...,
    distance: Literal["euclidean", "cosine"] = ...,
    ties: Literal["pessimistic", "optimistic", "both"] = ...,
    first_only: Literal[False] = ...,
    threads: int | None = ...,
) -> tuple[Integers, Integers]: ...
@overload
def positive_ranks(
    emb: ArrayLike,
    labels: ArrayLike,
    *,
    ref_emb: ArrayLike | None = ...,
    ref_labels: ArrayLike | None = ...,
    distance: Literal["euclidean", "cosine"] = ...,
    ties: Literal["pessimistic", "optimistic", "both"] = ...,
    first_only: Literal[True],
    threads: int | None = ...,
) -> Integers: ...
def positive_ranks(
    emb: ArrayLike,
    labels: ArrayLike,
    *,
    ref_emb: ArrayLike | None = None,
    ref_labels: ArrayLike | None = None,
    distance: Literal["euclidean", "cosine"] = "euclidean",
    ties: Literal["pessimistic", "optimistic", "both"] = "pessimistic",
    first_only: bool = False,
    threads: int | None = None,
) -> tuple[Integers, Integers] | Integers:
    r"""Ranks of the positives of every query among all references, by counting.

    .. math:: r_{ij} = j + |\{n \in N_i : d_{in} \le d_{i(j)}\}|, \qquad j = 1 \ldots |P_i|

    where :math:`d_{i(j)}` is the distance to the j-th nearest positive; distances are compared as in
    float64. Recall@k is the share of queries whose first rank is at most k.

    Parameters
    ----------
    emb, labels, ref_emb, ref_labels, threads
        Queries and gallery, as for :func:`distance_mixture`. Without a gallery the queries are their own,
        each left out of its own list by its index.
    distance
        ``"euclidean"`` or ``"cosine"`` (1 - cosine; a zero vector has cosine 0 with everything).
    ties
        ``"pessimistic"`` ranks equally distant negatives first, ``"optimistic"`` last. ``"both"`` returns
        the two stacked, ranks of shape [2, ...], pessimistic first.
    first_only
        Return the rank of the nearest positive only.

    Returns
    -------
    (ranks, offsets) or ranks
        ``ranks`` int64 [total positives], 1-based, ascending within a query; those of query i are
        ``ranks[offsets[i]:offsets[i + 1]]`` with ``offsets`` int64 [N + 1]. With ``first_only=True`` just
        int64 [N], 0 where a query has no positive.

    Raises
    ------
    TypeError, ValueError
        For arguments of a wrong dtype or shape, an unknown ``distance`` or ``ties``, and NaN, Inf or values
        whose differences leave the range of float64.

    Examples
    --------
    >>> from ala_metric import numpy_api
    >>> ranks, offsets = numpy_api.positive_ranks([[0.0], [1.0], [1.5], [4.0]], [0, 0, 1, 0])
    >>> ranks.tolist(), offsets.tolist()
    ([1, 3, 2, 3, 2, 3], [0, 2, 4, 4, 6])
    """
    points, classes, references, ref_classes = _batch(emb, labels, ref_emb, ref_labels)
    if distance not in ("euclidean", "cosine"):
        raise ValueError(f"distance must be 'euclidean' or 'cosine', got {distance!r}")
    if ties not in ("pessimistic", "optimistic", "both"):
        raise ValueError(f"ties must be 'pessimistic', 'optimistic' or 'both', got {ties!r}")
    _check_finite(points, "emb", distance)
    if references is not None:
        _check_finite(references, "ref_emb", distance)
    offsets = np.concatenate([[0], np.cumsum(_positives(classes, ref_classes))]).astype(np.int64)
    both: Integers = _module.positive_ranks(
        points, classes, offsets, references, ref_classes, distance == "cosine", first_only, _threads(threads)
    )
    ranks = both if ties == "both" else both[0 if ties == "pessimistic" else 1]
    return ranks if first_only else (ranks, offsets)


def _positives(classes: Integers, ref_classes: Integers | None) -> Integers:
    """References of each query's class, not counting itself where the queries are their own gallery."""
    names, counts = np.unique(classes if ref_classes is None else ref_classes, return_counts=True)
    if len(names) == 0:
        return np.zeros_like(classes)
    place = np.minimum(np.searchsorted(names, classes), len(names) - 1)
    found: Integers = np.where(names[place] == classes, counts[place], 0) - (ref_classes is None)
    return found


def _check_finite(points: Floats, name: str, distance: str) -> None:
    bad = int((~np.isfinite(points).all(axis=1)).sum())
    if bad:
        raise ValueError(f"{name} must be finite, got NaN or Inf in {bad} of {len(points)} rows")
    if points.size and distance == "euclidean":
        with np.errstate(over="ignore"):
            widest = np.float64(points.max()) - np.float64(points.min())
        if not np.isfinite(widest):
            raise ValueError(f"{name} must have differences inside the range of float64")


_Batch = tuple[Floats, Integers, "Floats | None", "Integers | None"]


def _mixture(
    batch: _Batch, phi: ArrayLike, weights: ArrayLike | None, gradient: bool, threads: int | None
) -> tuple[Any, ...]:
    points, classes, references, ref_classes = batch
    result: tuple[Any, ...] = _module.distance_mixture(
        points,
        classes,
        _parameters(phi, 10),
        references,
        ref_classes,
        _weights(weights, points),
        gradient,
        _threads(threads),
    )
    return result


def _focal(
    batch: _Batch,
    phi: ArrayLike,
    offset: float,
    weights: ArrayLike | None,
    gradient: bool,
    threads: int | None,
) -> tuple[Any, ...]:
    points, classes, references, ref_classes = batch
    result: tuple[Any, ...] = _module.focal_weighting(
        points,
        classes,
        _parameters(phi, 2),
        float(offset),
        references,
        ref_classes,
        _weights(weights, points),
        gradient,
        _threads(threads),
    )
    return result


def _points(x: ArrayLike, name: str) -> Floats:
    """Check an array of rows; copy it only if its bytes are swapped or lie askew."""
    array = np.asarray(x)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise TypeError(f"{name} must be float16, float32 or float64, got {array.dtype}")
    if array.ndim != 2:
        raise ValueError(f"{name} must have shape [rows, dimensions], got {array.shape}")
    if not array.flags.aligned or any(stride % array.itemsize for stride in array.strides):
        array = array.copy()
    return array


def _references(y: ArrayLike, points: Floats, name: str, points_name: str) -> Floats:
    array = _points(y, name)
    if array.shape[1] != points.shape[1]:
        raise ValueError(
            f"{name} must have {points.shape[1]} dimensions like {points_name}, got {array.shape[1]}"
        )
    if array.dtype != points.dtype:
        raise TypeError(f"{name} must have dtype {points.dtype} like {points_name}, got {array.dtype}")
    return array


def _classes(labels: ArrayLike, points: Floats, name: str, points_name: str) -> Integers:
    array = np.asarray(labels)
    if array.size == 0:
        array = array.astype(np.int64)  # an empty list is an array of floats
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must have an integer dtype, got {array.dtype}")
    if array.shape != points.shape[:1]:
        raise ValueError(
            f"{name} must have shape [{points.shape[0]}] like the rows of {points_name}, got {array.shape}"
        )
    return np.ascontiguousarray(array, dtype=np.int64)


def _batch(
    emb: ArrayLike, labels: ArrayLike, ref_emb: ArrayLike | None, ref_labels: ArrayLike | None
) -> _Batch:
    points = _points(emb, "emb")
    classes = _classes(labels, points, "labels", "emb")
    if ref_emb is None and ref_labels is None:
        return points, classes, None, None
    if ref_emb is None or ref_labels is None:
        raise ValueError("ref_emb and ref_labels must be given together")
    references = _references(ref_emb, points, "ref_emb", "emb")
    return points, classes, references, _classes(ref_labels, references, "ref_labels", "ref_emb")


def _parameters(phi: ArrayLike, count: int) -> NDArray[np.float64]:
    array = np.asarray(phi, dtype=np.float64)
    if array.shape != (count,):
        raise ValueError(f"phi must have shape [{count}], got {array.shape}")
    return np.ascontiguousarray(array)


def _weights(weights: ArrayLike | None, points: Floats) -> Floats | None:
    if weights is None:
        return None
    dtype = np.float64 if points.dtype == np.float64 else np.float32
    array: Floats = np.ascontiguousarray(weights, dtype=dtype)
    if array.shape != points.shape[:1]:
        raise ValueError(f"weights must have shape [{points.shape[0]}], got {array.shape}")
    return array


def _threads(threads: int | None) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads is None:
        return cores
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    return min(int(threads), max(cores, _MOST_THREADS))
