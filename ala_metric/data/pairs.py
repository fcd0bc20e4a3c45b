"""Verification pairs: same or different class, in folds that share no class."""

from __future__ import annotations

import numpy as np
import torch


def verification_pairs(
    labels: torch.Tensor, *, pairs: int = 6000, folds: int = 10, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw balanced verification pairs in the manner of LFW's View 2.

    The classes are dealt to the folds, so that no class is in two of them. Every fold gets
    ``pairs / (2 folds)`` pairs of one class, then as many of two classes; no pair occurs twice.

    Parameters
    ----------
    labels
        int ``[N]``, the class of each image.
    pairs
        Number of pairs, a multiple of ``2 * folds``.
    folds
        Number of folds.
    seed
        The pairs are a function of the labels and this number.

    Returns
    -------
    tuple of torch.Tensor
        Pairs of indices into ``labels``, int64 ``[pairs, 2]``, and their folds, int64 ``[pairs]``.

    Raises
    ------
    ValueError
        If the labels are not ``[N]``, the counts do not divide, or a fold has too few pairs to draw from.

    Examples
    --------
    >>> import torch
    >>> index, fold = verification_pairs(torch.arange(8).repeat_interleave(3), pairs=8, folds=2)
    >>> tuple(index.shape), fold.bincount().tolist()
    ((8, 2), [4, 4])
    """
    if labels.ndim != 1:
        raise ValueError(f"labels must be [N], got shape {list(labels.shape)}")
    if folds < 1 or pairs < 1 or pairs % (2 * folds):
        raise ValueError(f"pairs must be a positive multiple of 2 * folds, got pairs={pairs}, folds={folds}")
    rng = np.random.default_rng(seed)
    of_image = labels.cpu().numpy()
    classes = rng.permutation(np.unique(of_image))
    half = pairs // (2 * folds)
    drawn = []
    for fold in range(folds):
        members = np.flatnonzero(np.isin(of_image, classes[fold::folds]))
        left, right = np.triu_indices(len(members), k=1)
        same = of_image[members[left]] == of_image[members[right]]
        for kind, pool in (("same", np.flatnonzero(same)), ("different", np.flatnonzero(~same))):
            if len(pool) < half:
                raise ValueError(
                    f"fold {fold} needs {half} {kind}-class pairs, but its {len(members)} images "
                    f"have only {len(pool)}"
                )
            chosen = rng.choice(pool, half, replace=False)
            drawn.append(np.stack([members[left[chosen]], members[right[chosen]]], axis=1))
    index = torch.from_numpy(np.concatenate(drawn).astype(np.int64))
    return index, torch.arange(folds).repeat_interleave(2 * half)
