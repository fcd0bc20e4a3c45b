"""Arms that train at once (``fit(vectorised=True)``) against arms that train in turn, one thread."""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ala_metric import training

from .study.races import cheaper
from .study.tasks import BUILT_IN, Task, problem
from .study.trial import LEARNING_RATE, Trial

TASKS = {task.name: task for task in BUILT_IN}


@dataclass(frozen=True)
class Case:
    """Arms of one stage; ``arms=0`` is a whole race at the default budget."""

    name: str
    task: str
    arms: int
    steps: int = 100
    convolutions: bool = False


CASES = (
    *(Case(f"digits, perceptron 64-64-10, {n} arms", "digits-clean", n) for n in (12, 24)),
    *(Case(f"glyphs, perceptron 196-128-32, all pairs, {n} arms", "glyphs-allpairs", n) for n in (12, 24)),
    Case("glyphs, the same, focal, 24 arms", "glyphs-focal", 24),
    Case("glyphs, the same, semi-hard miner, 24 arms", "glyphs-semihard", 24, steps=60),
    Case("glyphs, SmallConvNet, all pairs, 12 arms", "glyphs-allpairs", 12, steps=20, convolutions=True),
    Case("digits, whole race, validation included", "digits-clean", 0),
    Case("glyphs all pairs, whole race, validation included", "glyphs-allpairs", 0),
    Case("glyphs semi-hard, whole race, validation included", "glyphs-semihard", 0),
)


def seconds(case: Case, vectorised: bool) -> float:
    """Wall-clock seconds of the training steps of a stage (the meter's), or processor seconds of a race."""
    whole = TASKS[case.task]
    task: Task = whole if case.arms == 0 else replace(whole, steps=case.steps)
    trial = Trial(task, problem(whole, 0), 0)
    if case.convolutions:
        trial.model = trial.validation.model = training.SmallConvNet(dim=32)
        trial.optimizer = torch.optim.Adam(trial.model.parameters(), lr=LEARNING_RATE)
    settings: dict[str, Any] = {"metric": trial.problem.metric, "validate": cheaper(trial)}
    if case.arms:
        settings["rungs"] = ((1.0 - 1.0 / case.steps, case.arms), (1.0, 1))
    begin = time.process_time()
    result = trial.fit(
        trial.adaptive(), mode="race", race=training.RaceSettings(**settings), vectorised=vectorised
    )
    spent = time.process_time() - begin
    return result.compute.training_seconds if case.arms else spent


def main(arguments: list[str] | None = None) -> int:
    """Measure all cases in turns; the first round is thrown away."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks vectorised", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="CSV file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    print("| case | in turn, ms per arm and step | at once | faster by |\n|---|---|---|---|")
    for case in CASES:
        pairs = [(seconds(case, False), seconds(case, True)) for _ in range(options.rounds + 1)][1:]
        count = case.arms * (case.steps - 1) or 1
        turn, once = (1e3 * statistics.median(times) / count for times in zip(*pairs))
        ratios = sorted(first / second for first, second in pairs)
        ratio = statistics.median(ratios)
        print(f"| {case.name} | {turn:.3g} | {once:.3g} | {ratio:.2f} |", flush=True)
        clock = "wall" if case.arms else "processor"
        rows.append(
            [case.name, clock, f"{turn:.4f}", f"{once:.4f}", f"{ratio:.3f}", *(f"{r:.3f}" for r in ratios)]
        )
    if options.out is not None:
        with options.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(
                [
                    "case",
                    "clock",
                    "turn_ms",
                    "once_ms",
                    "ratio",
                    *(f"round_{i + 1}" for i in range(options.rounds)),
                ]
            )
            writer.writerows(rows)
    return 0
