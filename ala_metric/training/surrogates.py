"""Differentiable stand-ins for a validation metric, for hypergradients."""

from __future__ import annotations

import torch


def nca(outputs: torch.Tensor, targets: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    r"""Neighbourhood components analysis (Goldberger et al., NeurIPS 2004), a smooth Recall@1.

    .. math:: S = -\operatorname{mean}_i \log \sum_{j \ne i, y_j = y_i} p_{ij}, \quad
              p_{ij} \propto \exp(-|z_i - z_j|^2 / \tau), \quad z = x / |x|

    Parameters
    ----------
    outputs
        Embeddings ``[N, D]``; normalised here.
    targets
        Classes ``[N]``.
    temperature
        :math:`\tau`, in squared distances of unit vectors.

    Returns
    -------
    torch.Tensor
        A scalar; queries without a positive are left out, 0 if there are none.

    Examples
    --------
    >>> targets = torch.tensor([0, 0, 1, 1])
    >>> good = nca(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]), targets)
    >>> bad = nca(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]]), targets)
    >>> bool(good < bad)
    True
    """
    rows = torch.nn.functional.normalize(outputs, dim=1)
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    closeness = (2.0 * rows @ rows.T - 2.0) / temperature
    closeness = closeness.masked_fill(itself, -torch.inf)
    same = (targets[:, None] == targets) & ~itself
    has = same.any(1)
    log_probabilities = closeness[has].log_softmax(1).masked_fill(~same[has], -torch.inf)
    return -log_probabilities.logsumexp(1).sum() / max(int(has.sum()), 1)


def balanced_cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean over the classes of the mean cross-entropy of their samples, a smooth balanced error.

    ``S = -mean_c mean_{i: y_i = c} log softmax(z_i)_c``

    Parameters
    ----------
    outputs
        Logits ``[N, C]``.
    targets
        Classes ``[N]``.

    Returns
    -------
    torch.Tensor
        A scalar; classes without samples are left out.

    Examples
    --------
    >>> balanced_cross_entropy(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
    tensor(0.6931)
    """
    losses = torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
    count = torch.bincount(targets, minlength=outputs.shape[1]).to(losses.dtype)
    return (losses / count[targets]).sum() / (count > 0).sum()
