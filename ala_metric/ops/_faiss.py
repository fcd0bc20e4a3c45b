"""Candidates from faiss, their order settled in float64."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from ._rank_strips import RankStrips, between, nearest, write_ranks
from ._strips import chunks

PACKAGES = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12")
GPU_TEMPORARY_BYTES = 256 << 20
_DEPTHS = (128, 2048)  # 2048 is the most that faiss searches on a GPU
_QUERIES = 1024


def load_faiss() -> Any:
    """Import faiss, or say what to install.

    Raises
    ------
    ImportError
        If faiss is missing or does not load.
    RuntimeError
        If two packages that share the module name are installed.
    """
    found = [name for name in PACKAGES if _is_installed(name)]
    if len(found) > 1:
        raise RuntimeError(
            f"{' and '.join(found)} are installed over each other, and neither can be trusted; run: "
            f"pip uninstall -y {' '.join(found)} && pip install {found[-1]}"
        )
    try:
        import faiss
    except (ImportError, RuntimeError) as error:  # builds for another CUDA or NumPy fail in either way
        raise ImportError(
            f"impl='faiss' needs faiss ({error}); run: pip install 'ala-metric[faiss]', or with an NVIDIA "
            "GPU: pip install 'ala-metric[faiss-gpu]'"
        ) from error
    return faiss


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


class FaissRanks(RankStrips):
    """Ranks from the nearest references that faiss finds; queries that need more are counted in strips."""

    def __init__(
        self,
        emb: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
        distance: str,
    ) -> None:
        self.faiss = load_faiss()
        self.device = emb.device
        # a faiss without GPU support has no get_num_gpus
        self.has_gpu = getattr(self.faiss, "get_num_gpus", lambda: 0)() > 0
        self.tensors = emb.is_cuda and self.has_gpu
        if self.tensors:  # then faiss searches the tensors where they are
            import faiss.contrib.torch_utils  # noqa: F401

            super().__init__(emb, labels, ref_emb, ref_labels, distance)
            return
        if ref_emb is not None and ref_labels is not None:
            ref_emb, ref_labels = ref_emb.cpu(), ref_labels.cpu()
        super().__init__(emb.cpu(), labels.cpu(), ref_emb, ref_labels, distance)

    def ranks(self, positives: Tensor, first_only: bool) -> Tensor:
        """Pessimistic and optimistic ranks [2, ...] of all queries."""
        return super().ranks(positives.to(self.labels.device), first_only).to(self.device)

    def count(self, rows: Tensor, wanted: Tensor, starts: Tensor, found: Tensor) -> None:
        """Write the ranks of the ``wanted`` nearest positives of queries ``rows`` to ``found``."""
        m, d = self.references.shape
        if not len(rows) or not d:
            return super().count(rows, wanted, starts, found)
        index = self._index()
        length = self.references.norm(dim=1).max()
        # float32 rows, products in any order of additions, and their sums
        rounding = 1.05 * (d + 20) * 2.0**-24
        for depth in _DEPTHS:
            k = min(m, depth)
            left = []
            for part in chunks(len(rows), _QUERIES):
                strip = rows[part]
                reach = 1.0 if self.cosine else (self.queries[strip].norm(dim=1) + length) ** 2
                slack = torch.as_tensor(rounding * reach, device=rows.device).expand(len(strip))
                key, near = self._search(index, self.queries[strip].float(), k)
                done = self._settle(strip, near, key, slack, wanted, starts, found)
                left.append(strip[~done])
            rows = torch.cat(left)
            if k == m or not len(rows):
                return None
        return super().count(rows, wanted, starts, found)

    def _index(self) -> Any:
        d = self.references.shape[1]
        index = self.faiss.IndexFlatIP(d) if self.cosine else self.faiss.IndexFlatL2(d)
        if self.has_gpu:
            self.resources = self.faiss.StandardGpuResources()
            self.resources.setTempMemory(GPU_TEMPORARY_BYTES)
            card = (self.device.index or 0) if self.tensors else 0
            index = self.faiss.index_cpu_to_gpu(self.resources, card, index)
        references = self.references.float()
        index.add(references if self.tensors else references.numpy())
        return index

    def _search(self, index: Any, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Keys and numbers [c, k] of the nearest references."""
        if self.tensors:
            key, near = index.search(queries, k)
        else:
            key, near = map(torch.from_numpy, index.search(queries.numpy(), k))
        return key, near

    def _settle(
        self,
        rows: Tensor,
        near: Tensor,
        found_key: Tensor,
        slack: Tensor,
        wanted: Tensor,
        starts: Tensor,
        found: Tensor,
    ) -> Tensor:
        """Write the ranks of the ``rows`` for which the candidates ``near`` [c, k] suffice; say which."""
        done = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        key = found_key.double() * (-1 if self.cosine else 1)
        same = self.labels[rows, None] == self.ref_labels[near]
        negative = ~same
        if self.symmetric:
            same &= near != rows[:, None]
        at = torch.nonzero(same.sum(1) >= wanted[rows])[:, 0]
        rows, near, key, same, negative = (x[at] for x in (rows, near, key, same, negative))
        self.make_exact(key, same, rows, near)
        thresholds, slack = nearest(key, same, wanted[rows])[0], slack[at, None]
        if near.shape[1] < len(self.ref_labels):  # whatever was not found is farther than the last that was
            last = thresholds.gather(1, wanted[rows, None] - 1)
            enough = (key[:, -1:] - slack > last)[:, 0]
            at, rows, near, key = at[enough], rows[enough], near[enough], key[enough]
            negative, thresholds, slack = negative[enough], thresholds[enough], slack[enough]
        first, end = between(key, slack, thresholds)
        self.make_exact(key, (first < end) & negative, rows, near)
        write_ranks(key, negative, thresholds, wanted[rows], starts[rows], found)
        done[at] = True
        return done
