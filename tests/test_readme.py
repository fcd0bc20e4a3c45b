"""The README's program runs as it stands there, and what the README points to exists."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_metric_learning.utils import common_functions
from torch.utils.data import DataLoader

from ala_metric import data, training

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = [
    text for text in re.findall(r"^```python\n(.*?)^```", README, re.M | re.S) if "optimizer.step()" in text
]


def test_the_program_runs_verbatim(tmp_path: Path) -> None:
    assert len(PROGRAMS) == 1
    program = tmp_path / "readme.py"
    program.write_text(PROGRAMS[0], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 9
    assert lines[0].startswith("10 Recall@1 0.")
    assert "reward None" in lines[0]
    assert all(re.search(r"reward (-?1|0|-?1\.0|0\.0)$", line) for line in lines[1:])


SUBSTITUTIONS = [
    text for text in re.findall(r"^```python\n(.*?)^```", README, re.M | re.S) if text not in PROGRAMS
]


def surroundings() -> dict[str, Any]:
    """What a reader's script has defined before each of the short blocks."""
    digits = data.load("digits")
    batches = itertools.islice(data.ClassBalancedSampler(digits.train.labels, classes=10, per_class=6), 2)
    loader = DataLoader(digits.train, batch_sampler=list(batches))
    model = training.SmallConvNet(dim=16)
    validation = DataLoader(digits.validation, batch_size=256)
    return {
        "loader": loader,
        "model": model,
        "validation": validation,
        "validate": lambda: training.embed(model, validation),
        "models": {"trunk": model},
        "optimizers": {"trunk_optimizer": torch.optim.SGD(model.parameters(), lr=0.1)},
        "train_set": digits.train,
        "sampler": range(120),
    }


def lightning_module(model: torch.nn.Module) -> Any:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.model(images)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return self.loss_fn(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


@pytest.mark.parametrize("number", range(len(SUBSTITUTIONS)))
@pytest.mark.filterwarnings("ignore")
def test_before_and_after_run_verbatim(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(SUBSTITUTIONS) == 6  # a plain loop, a trainer of PML, and Lightning
    block, before = SUBSTITUTIONS[number], number % 2 == 0
    monkeypatch.chdir(tmp_path)
    names = surroundings()
    if "lightning" in block:
        pytest.importorskip("lightning.pytorch", reason="needs Lightning: pip install lightning")
        names["module"] = lightning_module(names["model"])
    # PML's trainers start 2 worker processes by default, which take seconds to stop
    loader = common_functions.get_train_dataloader
    monkeypatch.setattr(
        common_functions,
        "get_train_dataloader",
        lambda data, size, sampler, _, how: loader(data, size, sampler, 0, how),
    )
    exec(compile(block, f"README, block {number}", "exec"), names)
    if not before:
        watched = names.get("hook") or names.get("adapt") or names["loss_fn"]
        assert (watched.ala if hasattr(watched, "ala") else watched)._iterations >= 2


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_anchors_exist() -> None:
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", README, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= headings


def test_commands_of_the_readme_parse() -> None:
    from ala_metric.cli.main import make_parser

    commands = re.findall(r"^\$ ala-metric ([^#\n]*)", README, re.M) + re.findall(
        r"`ala-metric ([^`]*)`", README
    )
    assert len(commands) >= 8
    for command in commands:
        make_parser().parse_args(command.split())


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.M), target
