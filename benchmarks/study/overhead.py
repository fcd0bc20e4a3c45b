"""``--overhead``: what the published controller costs beside the fixed loss, by meter and by clock."""

from __future__ import annotations

from pathlib import Path

from ala_metric.cli import experiment
from ala_metric.cli.options import TrainOptions
from ala_metric.data import ImageSet

from .tables import table

EVERY, STEPS, CLASSES = 200, 800, 40


def overhead(out: Path) -> None:
    """Train the demo's task in paper mode at K = 200 with a part of the validation classes."""
    splits = experiment.load_data("glyphs")
    rows = []
    for name, classes in (("all validation classes", None), (f"{CLASSES} validation classes", CLASSES)):
        options = TrainOptions(data="glyphs", mode="paper", every=EVERY, steps=STEPS, device="cpu")
        parts = experiment.build(experiment.resolve(options), splits)
        if classes is not None:
            whole = splits.validation
            assert isinstance(whole, ImageSet)
            kept = whole.labels < whole.classes[classes]
            parts.validation.images = ImageSet(whole.images[kept], whole.labels[kept], whole.name)
        result = parts.fit()
        controller = sum(record.seconds for record in parts.loss_fn.history)
        rows.append(
            (
                name,
                str(len(parts.validation.images)),
                str(result.compute.validation_passes),
                f"{100 * (result.compute.in_units_of(STEPS) - 1):.2f} %",
                f"{100 * result.compute.validation_seconds / result.compute.training_seconds:.2f} %",
                f"{100 * controller / (result.seconds - controller):.2f} %",
            )
        )
    head = (
        "validation",
        "images",
        "passes",
        "compute beyond the fixed loss",
        "validation / training time",
        "validation, metric, statistics and controller / all other time",
    )
    text = f"Glyphs, semi-hard, K = {EVERY}, offsets (0, 5), {STEPS} steps.\n\n" + table(head, rows) + "\n"
    (out / "overhead.md").write_text(text, encoding="utf-8")
    print(text)
