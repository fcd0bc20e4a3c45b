"""A race of loss parameters on a cluster that may lose nodes: Ray Tune with ASHA instead of our own rungs.

    pip install "ray[tune]"
    python examples/ray_tune_race.py --samples 20 --steps 300

Each trial trains one set of parameters, drawn from the same ranges (``phi_spec``) and the same prior as in
``training.fit(mode="race")``, reports the validation metric at each rung, and keeps a checkpoint, from which
Ray restarts it on another node when its own is lost. ASHA stops trials that fall behind without waiting for
the slow ones, so its decisions depend on timing: unlike our race the result is not the same twice.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from ala_metric import ALALoss, controller, data, losses, metrics, training


def trial(config: dict[str, Any]) -> None:
    """Train one set of parameters rung by rung; go on from Ray's checkpoint where there is one."""
    from ray import tune

    torch.set_num_threads(1)
    torch.manual_seed(0)
    splits = data.load("digits")
    model = training.SmallConvNet(dim=16)
    validation = torch.utils.data.DataLoader(splits.validation, batch_size=512)
    loss = losses.DistanceMixtureLoss(config["phi"])
    metric = training.smooth_metric(metrics.RecallAtK((1,), distance="cosine"))
    loss_fn = ALALoss(loss, metric, lambda: training.embed(model, validation), config["steps"], mode="fixed")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run"
        if (before := tune.get_checkpoint()) is not None:
            with before.as_directory() as saved:
                file.write_bytes((Path(saved) / "run").read_bytes())
        for end in config["ends"]:
            result = training.fit(
                model,
                loss_fn,
                splits.train,
                total_steps=end,
                optimizer=optimizer,
                batch_classes=10,
                checkpoint=file,
                resume=True,
            )
            if result.resumed_at >= end and before is not None:
                continue
            score = metric(*training.embed(model, validation))
            tune.report({"score": score, "steps": end}, checkpoint=tune.Checkpoint.from_directory(folder))


def main() -> int:
    """Race with Ray Tune, or say what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    loss = losses.DistanceMixtureLoss()
    generator = torch.Generator().manual_seed(options.seed)
    start = tuple(float(value) for value in loss.phi)
    arms = [start] + [
        controller.prior_draw(loss.phi_spec, loss.phi_groups, generator) for _ in range(options.samples - 1)
    ]
    ends = [max(1, round(end * options.steps)) for end, _ in controller.rungs_for(4.0)]
    try:
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler
    except ImportError:
        print(
            'ray is not installed: pip install "ray[tune]". Without it, the same race in one process is\n'
            f"training.fit(..., mode='race'); these {len(arms)} arms would race to the steps {ends}.",
            file=sys.stderr,
        )
        return 1
    tuner = tune.Tuner(
        trial,
        param_space={
            "phi": tune.grid_search([list(arm) for arm in arms]),
            "steps": options.steps,
            "ends": ends,
        },
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            scheduler=ASHAScheduler(
                time_attr="steps", max_t=options.steps, grace_period=ends[0], reduction_factor=2
            ),
        ),
        run_config=tune.RunConfig(failure_config=tune.FailureConfig(max_failures=3)),
    )
    best = tuner.fit().get_best_result()
    print(f"best phi {best.config['phi']}, score {best.metrics['score']:.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
