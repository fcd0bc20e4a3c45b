"""The demo's page: one self-contained HTML file that asks nothing of the network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

import numpy as np

from . import figures
from .console import optional
from .summary import HEADER, compare, compute_lines, split_pairs, verdict

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>ala-metric demo: fixed and adaptive loss</title>
<link rel="icon" href="data:,">
<style>
:root { --paper: #ffffff; --ink: #1b1e23; --faint: #8a9099; --muted: #5a616b; --line: #d9dde3;
  --panel: #f5f6f8; --fixed: #7a5c00; --adaptive: #0b62b3; --right: #1a7f37; --wrong: #c62828; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14161a; --ink: #e8eaed; --faint: #858c96; --muted: #a3aab4; --line: #343a42;
    --panel: #1d2126; --fixed: #e0b84c; --adaptive: #6db3f2; --right: #4cc26b; --wrong: #ff7b72; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 66rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p, li { max-width: 46rem; }
.verdict { border-left: 4px solid var(--adaptive); background: var(--panel); padding: .75rem 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.note { color: var(--muted); font-size: .9rem; margin: 0 0 .3rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
@media (max-width: 32rem) { table { font-size: .8rem; } th, td { padding-right: .4rem; } }
.two { display: grid; gap: 1rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { color: var(--muted); font-size: .9rem; }
.query { display: flex; gap: .25rem; margin: 0 0 .5rem; }
.cell { flex: 1 1 0; min-width: 0; max-width: 4.2rem; text-align: center;
  font-size: .8rem; line-height: 1.3; }
.cell img { display: block; width: 100%; height: auto; image-rendering: pixelated;
  border: 3px solid var(--line); }
.first { margin-right: .4rem; }
.right img { border: 3px solid var(--right); }
.wrong img { border: 3px dashed var(--wrong); }
.right { color: var(--right); }
.wrong { color: var(--wrong); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
code { font-size: .9em; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>Fixed and adaptive loss, side by side</h1>
<p>$introduction</p>
<p class="verdict">$verdict</p>
<h2>Retrieval on the test images</h2>
<p class="note">Percent of test queries, mean ± standard deviation over seeds; differences
are adaptive − fixed, in points.</p>
<div class="scroll"><table>
$table
</table></div>
<ul>
$compute
</ul>
<h2>The loss while it trains</h2>
<div class="two">
<figure>$phi_figure<figcaption>Every parameter of the adaptive loss; one line per seed.
The fixed loss stays at the left end of each line.</figcaption></figure>
<div>
<figure>$metric_figure<figcaption>Validation $metric; thin lines are seeds, thick lines their
mean.</figcaption></figure>
<figure>$reward_figure<figcaption>Reward of each action, mean over seeds: +1 where the validation
metric rose after it, −1 where it fell. $reward_share</figcaption></figure>
</div>
</div>
<h2>Test queries and their nearest neighbours</h2>
<p>$query_note Solid frame and ✓: same class as the query. Dashed frame and ✗: another class.</p>
<div class="two">
$grids
</div>
<h2>How this page was made</h2>
<dl>
$conditions
</dl>
</body>
</html>
""")


def render(results: Mapping[str, Any]) -> str:
    """Make the page from the results of a demo.

    Parameters
    ----------
    results
        ``runs``: one mapping per run with ``mode``, ``seed``, ``recall_at_k``, ``r_precision``, ``map_at_r``,
        ``steps``, ``validations``, ``train_seconds``, ``validation_seconds`` (both in seconds), ``history``
        and ``neighbours`` (``[queries, columns]`` indices of test images); ``images`` (index -> ``[H, W]``
        uint8) and ``labels`` (index -> int) of the test images shown; ``queries``; ``phi_names`` and
        ``phi_start``; ``metric``; ``introduction``; ``conditions``.

    Returns
    -------
    str
        HTML.

    Raises
    ------
    ValueError
        If the runs are not paired by seed.
    MissingPartError
        If matplotlib or pillow is not installed.
    """
    rows = compare(results["runs"])
    fixed, adaptive = split_pairs(results["runs"])
    histories = [run["history"] for run in adaptive]
    rewards = [
        record["reward"] for history in histories for record in history if record["reward"] is not None
    ]
    return PAGE.substitute(
        introduction=escape(results["introduction"]),
        verdict=escape(verdict(rows[0])),
        table=_table(HEADER, [row.cells() for row in rows]),
        compute="\n".join(f"<li>{escape(line)}</li>" for line in compute_lines(results["runs"])),
        phi_figure=_phi_svg(histories, results["phi_names"], results["phi_start"]),
        metric_figure=_metric_svg([run["history"] for run in fixed], histories, results["metric"]),
        reward_figure=_reward_svg(histories),
        reward_share=_share(rewards),
        metric=escape(results["metric"]),
        query_note=escape(f"{len(results['queries'])} queries drawn at random, seed {adaptive[0]['seed']}."),
        grids="\n".join(
            f"<div><h3>{escape(name)}</h3>{_grid(neighbour_rows(results, run['neighbours']))}</div>"
            for name, run in (("fixed", fixed[0]), ("adaptive", adaptive[0]))
        ),
        conditions="\n".join(
            f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>"
            for key, value in results["conditions"].items()
        ),
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"


def _share(rewards: Sequence[float]) -> str:
    if not rewards:
        return "No action was rewarded yet."
    up = sum(reward > 0 for reward in rewards)
    return f"{up} of {len(rewards)} rewards were +1."


def _phi_svg(histories: Sequence[figures.History], names: Sequence[str], start: Sequence[float]) -> str:
    figure = figures.new_figure(4.6, 0.4 + 0.95 * -(-len(names) // 2))
    figures.draw_phi(figure, histories, names, start)
    return _labelled(figures.to_svg(figure), "Parameters of the loss over training steps")


def _metric_svg(fixed: Sequence[figures.History], adaptive: Sequence[figures.History], metric: str) -> str:
    figure = figures.new_figure(4.6, 2.7)
    figures.draw_metric(figure.subplots(), {"fixed": fixed, "adaptive": adaptive}, metric)
    return _labelled(figures.to_svg(figure), f"Validation {metric} over training steps")


def _reward_svg(adaptive: Sequence[figures.History]) -> str:
    figure = figures.new_figure(4.6, 2.1)
    figures.draw_reward(figure.subplots(), adaptive)
    return _labelled(figures.to_svg(figure), "Reward of each action over training steps")


def _labelled(svg: str, label: str) -> str:
    """Give the picture a name for people who hear the page."""
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def neighbour_rows(
    results: Mapping[str, Any], found: Sequence[Sequence[int]]
) -> list[list[figures.Neighbour]]:
    """Per query its own picture, then those of its neighbours and whether they have its class."""
    images, labels = results["images"], results["labels"]
    return [
        [(images[query], None), *((images[i], bool(labels[i] == labels[query])) for i in row)]
        for query, row in zip(results["queries"], found)
    ]


def _grid(rows: Sequence[Sequence[figures.Neighbour]]) -> str:
    return "\n".join(
        f'<div class="query">{"".join(_cell(place, *cell) for place, cell in enumerate(row))}</div>'
        for row in rows
    )


def _cell(place: int, picture: Any, right: bool | None) -> str:
    if right is None:
        kind, mark, said = "first", "query", "query"
    elif right:
        kind, mark, said = "right", "✓", f"neighbour {place}: same class"
    else:
        kind, mark, said = "wrong", "✗", f"neighbour {place}: another class"
    image = f'<img src="{_png(picture)}" alt="{said}" width="28" height="28">'
    return f'<div class="cell {kind}">{image}<span aria-hidden="true">{mark}</span></div>'


def _png(image: Any) -> str:
    optional("PIL", "the picture grid")
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image, dtype=np.uint8)).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
