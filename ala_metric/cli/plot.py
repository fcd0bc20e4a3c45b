"""``ala-metric plot``: the history of a run as a picture."""

from __future__ import annotations

from . import figures, runs
from .arguments import UsageError
from .options import PlotOptions


def run(options: PlotOptions) -> int:
    """Draw the parameters, the validation metric and the rewards of a run."""
    if options.run is None:
        raise UsageError("give the folder of a run: ala-metric plot RUN")
    path = options.run / runs.HISTORY
    if not path.is_file():
        raise UsageError(
            f"{options.run} has no {runs.HISTORY}; give a folder that ala-metric train has written"
        )
    history = runs.read_json(path)
    for name in ("records", "phi_names", "phi_start", "metric", "options"):
        if name not in history:
            raise ValueError(f"{path} is not the history of a run: it has no {name!r}")
    if not history["records"]:
        raise ValueError(f"{path} holds no controller step yet: the run was shorter than its --every")
    out = options.out or options.run / "history.png"
    if out.suffix not in (".png", ".svg"):
        raise UsageError(f"out must end in .png or .svg, got {out.name!r}")
    runs.check_target(out)
    groups = {history["options"]["mode"]: [history["records"]]}
    figures.save(figures.overview(groups, history["phi_names"], history["phi_start"], history["metric"]), out)
    print(f"written to {out}")
    return 0
