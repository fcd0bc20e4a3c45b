"""Several gloo processes on this machine that do one thing together."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def together(size: int, folder: Path, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``work(rank, *args)`` returns in each process of a group, by rank."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    (folder / "meet").unlink(missing_ok=True)
    started = [
        context.Process(target=_member, args=(rank, size, str(folder), results, work, args))
        for rank in range(size)
    ]
    for process in started:
        process.start()
    found = dict(results.get(timeout=100) for _ in started)
    for process in started:
        process.join(timeout=20)
        process.kill()
    return [found[rank] for rank in range(size)]


def _member(rank: int, size: int, folder: str, results: Any, work: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    try:
        outcome = work(rank, *args)
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    results.put((rank, outcome))
    results.close()
    results.join_thread()
    os._exit(0)  # a process that has left its group does not wait for it
