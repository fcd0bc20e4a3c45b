"""Runs of the demo in processes of their own, one thread each."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from types import FrameType
from typing import Any

import torch

from .. import training
from . import experiment, tasks
from .console import Progress
from .options import TrainOptions

NEIGHBOURS = 5
Job = tuple[TrainOptions, list[int]]
_channel: dict[str, Any] = {}


def run_all(jobs: Mapping[str, Job], workers: int, bars: Progress) -> list[dict[str, Any]]:
    """Run every job, ``workers`` at a time, and return the results in the order of the jobs.

    When this process is interrupted or told to end, the workers stop at their next step.
    """
    context = multiprocessing.get_context("spawn")
    messages, stop = context.Queue(), context.Event()
    previous = signal.signal(signal.SIGTERM, _exit)
    try:
        with ProcessPoolExecutor(workers, context, _start_worker, (messages, stop)) as pool:
            futures = {name: pool.submit(run_one, name, *job) for name, job in jobs.items()}
            try:
                _follow(futures, messages, bars)
                return [future.result() for future in futures.values()]
            except BaseException:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def run_one(name: str, options: TrainOptions, queries: list[int]) -> dict[str, Any]:
    """Train one run and test the network after its last step; plain numbers only."""
    _go_on()
    splits = experiment.load_data(options.data)
    parts = experiment.build(options, splits)

    def report(step: int, loss: float) -> None:
        _go_on()
        history = parts.loss_fn.history
        note = f"validation Recall@1 {history[-1]['metric']:.3f}" if history else ""
        _channel["messages"].put((name, step, note))

    try:
        fitted = parts.fit(on_step=report)
    except training.Interrupted as stop:
        raise InterruptedError(str(stop)) from None
    embeddings, labels = experiment.embed(parts.model, splits.test)
    found = tasks.retrieval(embeddings, labels)
    return {
        "mode": options.mode,
        "seed": options.seed,
        "steps": fitted.steps,
        "batch_classes": experiment.batch_classes(options, splits),
        "train_seconds": fitted.seconds,
        "validations": fitted.compute.validation_passes,
        "validation_seconds": sum(record.seconds for record in parts.loss_fn.history),
        "history": [dict(record) for record in parts.loss_fn.history],
        "phi_names": parts.phi_names,
        "phi_start": parts.phi_start,
        "recall_at_k": found["recall_at_k"],
        "r_precision": found["r_precision"],
        "map_at_r": found["map_at_r"],
        "neighbours": nearest(embeddings, queries),
    }


def nearest(embeddings: torch.Tensor, queries: list[int], count: int = NEIGHBOURS) -> list[list[int]]:
    """Indices ``[queries, count]`` of the rows at the smallest angle to each query, itself left out."""
    rows = torch.nn.functional.normalize(embeddings.double())
    similarity = rows[queries] @ rows.T
    similarity[range(len(queries)), queries] = -torch.inf
    order: list[list[int]] = similarity.topk(count, dim=1).indices.tolist()
    return order


def _start_worker(messages: Any, stop: Any) -> None:
    """One thread; Ctrl-C and notices are the parent's business."""
    logging.getLogger("ala_metric").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _channel.update(messages=messages, stop=stop)


def _go_on() -> None:
    """Stop here if the parent says so, or is gone."""
    if _channel["stop"].is_set():
        raise InterruptedError("the demo was stopped")
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)


def _follow(futures: Mapping[str, Future[Any]], messages: Any, bars: Progress) -> None:
    """Pass the workers' messages on until all are done; the first failure is raised."""
    while not all(future.done() for future in futures.values()):
        with contextlib.suppress(queue.Empty):
            bars.update(*messages.get(timeout=0.2))
        for future in futures.values():
            if future.done() and not future.cancelled():
                future.result()
    while not messages.empty():
        bars.update(*messages.get())


def _exit(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)
