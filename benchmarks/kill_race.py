"""Kill -9 during a race of two processes: every restart must go on and end with the same bits.

    python -m benchmarks kill_race --kills 200 --out kill_race.json
    python -m benchmarks kill_race --kills 200 --forks

One race of random images is run once without disturbance, by one process and by two. Then it is run again
and again under torchrun while processes are killed at random moments, those of saving a checkpoint and of
exchanging weights included (a checkpoint is saved after every step). The victims are one worker, both, or
torchrun with both. torchrun restarts dead workers, and is started again where it was killed itself. Whenever
a race ends its numbers are compared with the undisturbed ones and the next race begins. With ``--forks`` a
small agent forks the workers, which saves the seconds that each start spends on importing torch.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

STEPS = 100
PAUSE = 0.01
LONGEST_LIFE = 2.0


def worker(folder: Path, store: str | None = None, rank: int = -1, size: int = -1) -> None:
    """One process of the race; the first writes what came out."""
    import torch
    import torch.distributed as dist

    from ala_metric import ALALoss, data, losses, metrics, training

    torch.set_num_threads(1)
    how: dict[str, Any] = {"init_method": store, "rank": rank, "world_size": size} if store else {}
    dist.init_process_group("gloo", timeout=timedelta(seconds=20), **how)
    rank = dist.get_rank()
    (folder / f"pid{rank}").write_text(str(os.getpid()))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (48, 1, 8, 8), dtype=torch.uint8, generator=generator)
    images = data.ImageSet(pixels, torch.arange(12).repeat_interleave(4), "random")
    torch.manual_seed(0)
    model = torch.nn.Sequential(training.SmallConvNet(dim=8, channels=(4, 4, 4)), torch.nn.Dropout(0.1))
    loss_fn = ALALoss(
        losses.DistanceMixtureLoss(),
        metrics.RecallAtK((1,), distance="cosine"),
        lambda: training.embed(model, [(pixels.float() / 255, images.labels)]),
        total_steps=STEPS,
        mode="fixed",
    )

    lives: list[int] = []

    def on_step(step: int, loss: float) -> None:
        if not lives:  # the first step of this life
            lives.append(step)
            with (folder / f"lives{rank}").open("a") as file:
                file.write(f"{step}\n")
        time.sleep(PAUSE)

    result = training.fit(
        model,
        loss_fn,
        images,
        total_steps=STEPS,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
        batch_classes=6,
        per_class=3,
        mode="race",
        race=training.RaceSettings(
            hypergradient=training.HypergradientSettings(training.nca, images, batch_classes=6, per_class=3)
        ),
        checkpoint=folder / "race",
        checkpoint_every=1,
        resume=True,
        on_step=on_step,
    )
    weights = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    found = {
        "weights": hashlib.sha256(weights).hexdigest(),
        "losses": [loss.hex() for loss in result.losses],
        "phi": [value.hex() for value in result.phi],
        "history": repr(result.phi_history),
        "records": repr([[record.stage, record.arms] for record in result.records]),
        "steps_of_all_arms": result.compute.training_steps,
        "validation_passes": result.compute.validation_passes,
    }
    if rank == 0:
        (folder / "result.tmp").write_text(json.dumps(found))
        os.replace(folder / "result.tmp", folder / "result.json")
    dist.destroy_process_group()


def forked(folder: Path, size: int) -> list[Any]:
    """New workers of the small agent."""
    context = multiprocessing.get_context("fork")
    store = tempfile.mktemp(dir=folder, prefix="store")
    processes = [
        context.Process(target=worker, args=(folder, f"file://{store}", rank, size)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    return processes


def ended(processes: list[Any]) -> bool:
    """Wait for the workers, and end all when one has failed; whether all finished."""
    while all(process.exitcode is None or process.exitcode == 0 for process in processes):
        if all(process.exitcode == 0 for process in processes):
            return True
        time.sleep(0.01)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(timeout=2.0)
        process.kill()
        process.join()
    return False


def run_undisturbed(folder: Path, size: int) -> dict[str, Any]:
    """The numbers of a race that nobody disturbs."""
    folder.mkdir()
    if not ended(forked(folder, size)):
        raise RuntimeError("the undisturbed race failed")
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def kill_until_done(folder: Path, wanted: int, draw: random.Random, deadline: float) -> Counter[str]:
    """Kill random workers of one race until it ends or enough were killed; how many were."""
    folder.mkdir()
    seen = Counter[str]()
    while True:
        processes = forked(folder, 2)
        if seen["kills"] < wanted and time.monotonic() < deadline:
            time.sleep(draw.uniform(0.0, LONGEST_LIFE))
            victim = draw.choice(processes)
            if victim.exitcode is None:
                victim.kill()
                seen["kills"] += 1
        if ended(processes):
            return seen


class Torchrun:
    """torchrun with two workers, started again whenever it was killed itself."""

    def __init__(self, folder: Path, kills: int) -> None:
        self.folder = folder
        self.command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        self.command += [f"--max-restarts={2 * kills + 20}", "--monitor-interval=0.1"]
        self.command += ["-m", "benchmarks", "kill_race", "--worker", str(folder)]
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Begin, or begin again."""
        self.starts += 1
        environment = os.environ | {
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            # Else restarted workers may read the addresses of dead ones from the agent's store.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        with (self.folder / "log").open("ab") as log:
            self.agent = subprocess.Popen(self.command, stdout=log, stderr=log, env=environment)

    def workers(self) -> list[int]:
        """Process ids of the present workers, in the order of their ranks; empty until both have met."""
        found = [(self.folder / f"pid{rank}") for rank in range(2)]
        pids = [int(path.read_text() or 0) if path.exists() else 0 for path in found]
        return pids if set(pids) <= set(self.children()) else []

    def children(self) -> list[int]:
        """Processes that the agent has started."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            pid = self.agent.pid
            return [int(pid) for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []

    def kill(self, victims: str, workers: list[int]) -> bool:
        """SIGKILL to one worker, both, or torchrun and both, as when a node is lost; whether any lived."""
        if victims == "torchrun":
            self.agent.send_signal(signal.SIGSTOP)  # it starts nobody between these lines
            workers = self.children()
            self.agent.kill()
        living = [pid for pid in workers if not _ended(pid)]
        for pid in living:
            os.kill(pid, signal.SIGKILL)  # at worst it is a zombie by now: its parent has not waited for it
        if victims == "torchrun":
            self.agent.wait()
            self.start()
        return bool(living)


def _ended(pid: int) -> bool:
    """Whether a process is gone, or has only not been waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


VICTIMS = ("one", "one", "one", "one", "both", "torchrun")  # drawn with equal probability


def kill_under_torchrun(folder: Path, wanted: int, draw: random.Random, deadline: float) -> Counter[str]:
    """The same with torchrun as the agent: it restarts workers, and is restarted where it was the victim."""
    folder.mkdir()
    race, seen = Torchrun(folder, wanted), Counter[str]()
    before: list[int] = []
    while race.agent.poll() is None:
        time.sleep(0.01)
        if seen["kills"] >= wanted or time.monotonic() > deadline:
            continue
        workers = race.workers()
        if len(workers) < 2 or set(workers) & set(before):
            continue
        time.sleep(draw.uniform(0.0, LONGEST_LIFE))
        if race.agent.poll() is not None:
            break
        victims = draw.choice(VICTIMS)
        rank = draw.randrange(2)
        before = workers
        if race.kill(victims, [workers[rank]] if victims == "one" else workers):
            seen["kills"] += 1
            seen[f"kills_of_{victims}"] += 1
    if race.agent.returncode != 0:
        raise RuntimeError(f"the race did not end:\n{(folder / 'log').read_text()[-8000:]}")
    seen["starts_of_torchrun"] = race.starts
    return seen


def main(arguments: list[str]) -> int:
    """Run the races and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="no new kills after this time, counted from the first"
    )
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--forks", action="store_true", help="a small agent instead of torchrun")
    parser.add_argument("--worker", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker is not None:
        worker(options.worker)
        return 0
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    from ala_metric import ALALoss, data, losses, metrics, training  # noqa: F401 (imported before the forks)

    disturbed = kill_until_done if options.forks else kill_under_torchrun
    draw = random.Random(options.seed)
    seen = Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        alone = run_undisturbed(Path(place) / "alone", 1)
        expected = run_undisturbed(Path(place) / "two", 2)
        begin = time.monotonic()
        deadline = begin + 60 * options.minutes
        while seen["kills"] < options.kills and time.monotonic() < deadline:
            folder = Path(place) / "race"
            seen += disturbed(folder, options.kills - seen["kills"], draw, deadline)
            found = json.loads((folder / "result.json").read_text())
            lives = [int(step) for step in (folder / "lives0").read_text().split()]
            seen["races"] += 1
            seen["races_with_other_numbers"] += found != expected
            seen["lives_that_trained"] += len(lives)
            seen["lives_that_went_on_from_a_checkpoint"] += sum(step > 1 for step in lives)
            shutil.rmtree(folder)
            print(dict(seen), f"{time.monotonic() - begin:.0f} s", flush=True)
    seen["races_with_other_numbers"] += 0
    report = {
        "agent": "forks" if options.forks else "torchrun",
        **seen,
        "one_process_equals_two": alone == expected,
        "steps_of_all_arms": expected["steps_of_all_arms"],
        "seconds": round(time.monotonic() - begin),
    }
    print(json.dumps(report))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return verdict(report, options.kills)


def verdict(report: dict[str, Any], wanted: int) -> int:
    """The exit status: 0 where as many were killed as asked for, and no race noticed. Says what is wrong."""
    wrong = []
    if report.get("kills", 0) < wanted:
        wrong.append(f"only {report.get('kills', 0)} of {wanted} kills came before --minutes were over")
    if report["races_with_other_numbers"]:
        wrong.append(f"{report['races_with_other_numbers']} races ended with other numbers")
    if not report["one_process_equals_two"]:
        wrong.append("one undisturbed process and two ended with different numbers")
    for line in wrong:
        print(f"kill_race: {line}", file=sys.stderr)
    return int(bool(wrong))
