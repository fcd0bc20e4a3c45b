"""Several processes with one child each: who trains which arm, and how results and weights travel."""

from __future__ import annotations

import io
from typing import Any

import torch
import torch.distributed as dist


class Processes:
    """The processes of torch.distributed, or this one alone.

    Collectives have a fixed size, except weights: their size is sent first.

    Parameters
    ----------
    device
        Device of the training, used by the backends that do not take CPU tensors.

    Examples
    --------
    >>> alone = Processes(torch.device("cpu"))
    >>> alone.rank, alone.size, alone.trains(3)
    (0, 1, True)
    """

    def __init__(self, device: torch.device) -> None:
        active = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if active else (0, 1)
        self.device = device if active and dist.get_backend() == "nccl" else torch.device("cpu")

    def owner(self, index: int) -> int:
        """Rank that trains the arm with this index in its stage."""
        return index % self.size

    def trains(self, index: int) -> bool:
        """Whether this process does."""
        return self.owner(index) == self.rank

    def rows(self, table: torch.Tensor) -> torch.Tensor:
        """Row i of the table of its owner, for all rows of a float64 ``[n, width]`` table."""
        if self.size == 1:
            return table
        tables = [torch.empty_like(table, device=self.device) for _ in range(self.size)]
        dist.all_gather(tables, table.to(self.device))
        return torch.stack([tables[self.owner(index)][index] for index in range(len(table))]).cpu()

    def everyone(self, number: int) -> list[int]:
        """The number that each process has."""
        if self.size == 1:
            return [number]
        mine = torch.tensor([number], device=self.device)
        numbers = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(numbers, mine)
        return [int(item) for item in numbers]

    def totals(self, numbers: list[float]) -> list[float]:
        """Sums over the processes."""
        if self.size == 1:
            return numbers
        mine = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(mine)
        result: list[float] = mine.tolist()
        return result

    def share(self, state: dict[str, Any] | None, owner: int) -> dict[str, Any]:
        """Plain data of one process, on every process; tensors arrive on the CPU."""
        if self.size == 1:
            if state is None:
                raise ValueError("the process that owns a state must give it")
            return state
        payload = torch.empty(0, dtype=torch.uint8)
        if state is not None and self.rank == owner:
            buffer = io.BytesIO()
            torch.save(state, buffer)
            payload = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        length = torch.tensor([payload.numel()], device=self.device)
        dist.broadcast(length, src=owner)
        if self.rank != owner:
            payload = torch.empty(int(length), dtype=torch.uint8)
        payload = payload.to(self.device)
        dist.broadcast(payload, src=owner)
        if self.rank == owner and state is not None:
            return state
        received = io.BytesIO(payload.cpu().numpy().tobytes())
        shared: dict[str, Any] = torch.load(received, map_location="cpu", weights_only=True)
        return shared

    def wait(self) -> None:
        """Go on when all processes are here."""
        self.everyone(0)
