"""Several processes: who trains which arm, how results and weights travel, and several that train one."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist


class Processes:
    """The processes of torch.distributed or of a group of it, or this one alone.

    Collectives have a fixed size, except weights: their size is sent first.

    Parameters
    ----------
    device
        Device of the training, used by the backends that do not take CPU tensors.
    group
        A process group that this one belongs to; None for all processes.

    Examples
    --------
    >>> alone = Processes(torch.device("cpu"))
    >>> alone.rank, alone.size, alone.trains(3)
    (0, 1, True)
    """

    def __init__(self, device: torch.device, group: Any = None) -> None:
        active = dist.is_available() and dist.is_initialized()
        self.group = group
        self.rank, self.size = (dist.get_rank(group), dist.get_world_size(group)) if active else (0, 1)
        self.device = device if active and dist.get_backend(group) == "nccl" else torch.device("cpu")

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
        dist.all_gather(tables, table.to(self.device), group=self.group)
        return torch.stack([tables[self.owner(index)][index] for index in range(len(table))]).cpu()

    def everyone(self, number: int) -> list[int]:
        """The number that each process has."""
        if self.size == 1:
            return [number]
        mine = torch.tensor([number], device=self.device)
        numbers = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(numbers, mine, group=self.group)
        return [int(item) for item in numbers]

    def totals(self, numbers: list[float]) -> list[float]:
        """Sums over the processes."""
        if self.size == 1:
            return numbers
        mine = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(mine, group=self.group)
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
        source = owner if self.group is None else dist.get_global_rank(self.group, owner)
        dist.broadcast(length, src=source, group=self.group)
        if self.rank != owner:
            payload = torch.empty(int(length), dtype=torch.uint8)
        payload = payload.to(self.device)
        dist.broadcast(payload, src=source, group=self.group)
        if self.rank == owner and state is not None:
            return state
        received = io.BytesIO(payload.cpu().numpy().tobytes())
        shared: dict[str, Any] = torch.load(received, map_location="cpu", weights_only=True)
        return shared

    def part(self, rows: torch.Tensor) -> torch.Tensor:
        """The share of this process of a batch whose rows are a multiple of the processes."""
        return rows if self.size == 1 else rows.tensor_split(self.size)[self.rank]

    def average_gradients(self, parameters: Iterable[torch.Tensor]) -> None:
        """Replace the gradients by their means over the processes; one that only some have is 0 elsewhere."""
        parameters = list(parameters)
        if self.size == 1 or not parameters:
            return
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=self.device)
        dist.all_reduce(used, op=dist.ReduceOp.MAX, group=self.group)
        parameters = [parameter for parameter, anywhere in zip(parameters, used.tolist()) if anywhere]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
            some = [gradient for gradient in gradients if gradient.dtype == dtype]
            mean = torch.cat([gradient.flatten() for gradient in some])
            dist.all_reduce(mean, group=self.group)
            mean /= self.size
            for gradient, piece in zip(some, mean.split([gradient.numel() for gradient in some])):
                gradient.copy_(piece.view_as(gradient))

    def wait(self) -> None:
        """Go on when all processes are here."""
        self.everyone(0)
