"""``ala-metric data check``: whether the files of a data set are all there and can be decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from .. import data
from ..training.interrupt import leave_signals_to_the_parent
from . import experiment
from .arguments import UsageError
from .console import format_table, progress
from .options import DataOptions

SHOWN = 10


def run(options: DataOptions) -> int:
    """Count and decode, print one table; 1 if anything is wrong."""
    if options.action is None or options.name is None or options.root is None:
        raise UsageError("give the data set and its folder: ala-metric data check NAME ROOT")
    splits = experiment.load_data(options.name, options.root)
    found, expected = data.counts(splits), data.EXPECTED[options.name]
    differing = [key for key, number in expected.items() if found.get(key) != number]
    rows = [_row(key, number, expected.get(key)) for key, number in found.items()]
    print(format_table((options.name, "found", "published", ""), rows))
    bad = list(_undecodable(options, splits))
    for line in bad[:SHOWN]:
        print(line)
    if len(bad) > SHOWN:
        print(f"and {len(bad) - SHOWN} more")
    if differing and not options.subset:
        print(f"counts differ from the published ones: {', '.join(differing)} (--subset accepts this)")
    wrong = bool(bad) or (bool(differing) and not options.subset)
    print(f"{options.name}: " + ("not usable as it is" if wrong else "ready"))
    return int(wrong)


def _row(key: str, number: int, expected: int | None) -> tuple[str, str, str, str]:
    if expected is None:
        return key, f"{number:,}", "", ""
    return key, f"{number:,}", f"{expected:,}", "same" if number == expected else "DIFFERS"


@dataclass(frozen=True)
class _Attempts(Dataset[str]):
    """Decodes images; an item is what went wrong, empty where nothing did."""

    images: data.ImageFiles
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> str:
        try:
            self.images[self.rows[index]]
        except (ValueError, OSError) as error:
            return str(error)
        return ""


def _undecodable(options: DataOptions, splits: data.Splits) -> Iterator[str]:
    """What is wrong with each image that cannot be decoded."""
    sets = (splits.train, splits.validation, splits.test)
    attempts = [
        _Attempts(images, _chosen(len(images), options))
        for images in sets
        if isinstance(images, data.ImageFiles)
    ]
    if not attempts:
        return
    total, done, wrong = sum(map(len, attempts)), 0, 0
    workers = experiment.loader_workers(options.loader_workers, splits)
    with progress({"decoding": total}) as bar:
        for part in attempts:
            loader = DataLoader(
                part,
                batch_size=32,
                num_workers=workers,
                collate_fn=list,
                worker_init_fn=leave_signals_to_the_parent,
            )
            for errors in loader:
                done += len(errors)
                wrong += sum(map(bool, errors))
                bar.update("decoding", done, f"{wrong} bad" if wrong else "")
                yield from filter(None, errors)
    print(f"decoded {total:,} of {sum(map(len, sets)):,} images, {wrong} failed")


def _chosen(count: int, options: DataOptions) -> tuple[int, ...]:
    """All rows, or a sample of them that is the same every time."""
    if options.all or count <= options.sample:
        return tuple(range(count))
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return tuple(drawn[: options.sample].sort().values.tolist())
