"""Kill -9 during a race of two processes: every restart must go on and end with the same bits.

    python -m benchmarks.kill_resume --kills 200 --out kill_resume.json
    python -m benchmarks.kill_resume --kills 5 --torchrun

One race of random images is run once without disturbance, by one process and by two. Then it is run again
and again while random workers are killed at random moments, those of saving a checkpoint and of exchanging
weights included (a checkpoint is saved after every step). Whenever one dies both start anew, as torchrun does
it; by default a small agent forks them, because torchrun's workers spend seconds on importing torch. Whenever
a race ends its numbers are compared with the undisturbed ones and the next race begins.
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
from datetime import timedelta
from pathlib import Path
from typing import Any

STEPS = 30
PAUSE = 0.01
LONGEST_LIFE = 1.0


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

    def on_step(step: int, loss: float) -> None:
        (folder / f"step{rank}").write_text(str(step))
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


def kill_until_done(folder: Path, wanted: int, draw: random.Random, deadline: float) -> int:
    """Kill random workers of one race until it ends or enough were killed; how many were."""
    folder.mkdir()
    kills = 0
    while True:
        processes = forked(folder, 2)
        if kills < wanted and time.monotonic() < deadline:
            time.sleep(draw.uniform(0.0, LONGEST_LIFE))
            victim = draw.choice(processes)
            if victim.exitcode is None:
                victim.kill()
                kills += 1
        if ended(processes):
            return kills


def kill_under_torchrun(folder: Path, wanted: int, draw: random.Random, deadline: float) -> int:
    """The same with torchrun as the agent."""
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={wanted + 5}", "--monitor-interval=0.1", "-m", "benchmarks.kill_resume"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("wb") as log:
        race = subprocess.Popen([*command, "--worker", str(folder)], stdout=log, stderr=log, env=environment)
    kills, killed = 0, ""
    while race.poll() is None:
        time.sleep(0.01)
        pid = folder / f"pid{draw.randrange(2)}"
        found = pid.read_text() if pid.exists() else ""
        if not found or found == killed or kills >= wanted or time.monotonic() > deadline:
            continue
        time.sleep(draw.uniform(0.0, LONGEST_LIFE))
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(found), signal.SIGKILL)
            kills += 1
        killed = found
    if race.returncode != 0:
        raise RuntimeError(f"the race did not end:\n{(folder / 'log').read_text()[-8000:]}")
    return kills


def main() -> int:
    """Run the races and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0, help="no new kills after this time")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--torchrun", action="store_true", help="torchrun restarts the workers")
    parser.add_argument("--worker", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        worker(options.worker)
        return 0
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    from ala_metric import ALALoss, data, losses, metrics, training  # noqa: F401 (imported before the forks)

    disturbed = kill_under_torchrun if options.torchrun else kill_until_done
    begin = time.monotonic()
    deadline = begin + 60 * options.minutes
    draw = random.Random(options.seed)
    kills, races, differing = 0, 0, 0
    with tempfile.TemporaryDirectory() as place:
        alone = run_undisturbed(Path(place) / "alone", 1)
        expected = run_undisturbed(Path(place) / "two", 2)
        while kills < options.kills and time.monotonic() < deadline:
            folder = Path(place) / f"race{races}"
            kills += disturbed(folder, options.kills - kills, draw, deadline)
            races += 1
            found = json.loads((folder / "result.json").read_text())
            differing += found != expected
            shutil.rmtree(folder)
            print(f"{kills} kills, {races} races, {differing} with other numbers", flush=True)
    report = {
        "kills": kills,
        "races": races,
        "races_with_other_numbers": differing,
        "one_process_equals_two": alone == expected,
        "steps_of_all_arms": expected["steps_of_all_arms"],
        "seconds": round(time.monotonic() - begin),
    }
    print(json.dumps(report))
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return int(differing > 0 or not report["one_process_equals_two"])


if __name__ == "__main__":
    raise SystemExit(main())
