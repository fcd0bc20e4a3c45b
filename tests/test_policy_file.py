"""Policy files: exact, checked byte by byte, written atomically."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ala_metric import CheckpointError, load_policy, save_policy
from ala_metric._files import atomic_write_bytes
from ala_metric.controller import Policy, sealed_file


def policy(**kwargs: Any) -> Policy:
    return Policy(generator=torch.Generator().manual_seed(1), **kwargs)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_policy(tmp_path / "policy.safetensors", policy())
    return tmp_path / "policy.safetensors"


def forge(path: Path, change: Any) -> None:
    """Change tensors and description under a right checksum: only later checks can refuse it."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    (entry, text), *_ = json.loads(data[8 : 8 + size])["__metadata__"].items()
    description = json.loads(text) | {"sha256": "0" * 64}
    tensors = change(load_tensors(data), description)
    data = save_tensors(tensors, metadata={entry: json.dumps(description)})
    path.write_bytes(data.replace(b"0" * 64, sealed_file._checksum(data).encode(), 1))


@pytest.mark.parametrize("kwargs", [{}, {"statistics_width": 2, "identities": 10, "beta": 0.05}])
def test_round_trip_is_bit_exact_in_one_file(tmp_path: Path, kwargs: dict[str, Any]) -> None:
    before = policy(**kwargs)
    save_policy(tmp_path / "file", before)
    after = load_policy(str(tmp_path / "file"))
    assert (after.statistics_width, after.identities, after.beta) == (
        before.statistics_width,
        before.identities,
        before.beta,
    )
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters()))
    assert os.listdir(tmp_path) == ["file"]


def test_saving_twice_gives_the_same_bytes(saved: Path) -> None:
    before = saved.read_bytes()
    save_policy(saved, policy())
    assert saved.read_bytes() == before


def test_every_flipped_byte_is_found(saved: Path) -> None:
    data = saved.read_bytes()
    header_end = 8 + int.from_bytes(data[:8], "little")
    for position in [*range(header_end), *range(header_end, len(data), 97), len(data) - 1]:
        damaged = bytearray(data)
        damaged[position] ^= 0x01
        saved.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_policy(saved)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, -4096, -1])
def test_truncation_is_found(saved: Path, length: int) -> None:
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"policy\.safetensors"):
        load_policy(saved)


def test_appended_bytes_are_found(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(CheckpointError):
        load_policy(saved)


@pytest.mark.parametrize(
    "data",
    [
        (1 << 62).to_bytes(8, "little") + b"{}",
        (1 << 20).to_bytes(8, "little") + b" " * (1 << 20),
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (30000).to_bytes(8, "little") + b"[" * 30000,
        (22).to_bytes(8, "little") + b'{"__metadata__": "hm"}',
        pickle.dumps({"a": 1}),
        save_tensors({"a": torch.ones(3)}),
    ],
    ids=["huge", "long", "empty", "list", "nested", "text", "pickle", "other"],
)
def test_foreign_files_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(CheckpointError):
        load_policy(tmp_path / "file")


def test_the_forger_can_forge(saved: Path) -> None:
    forge(saved, lambda tensors, description: tensors)
    load_policy(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(saved: Path, value: float) -> None:
    forge(saved, lambda tensors, description: tensors | {"biases.0": torch.full((32,), value)})
    with pytest.raises(CheckpointError, match="finite"):
        load_policy(saved)
    broken = policy()
    broken.biases[0].data[3] = value
    before = saved.read_bytes()
    with pytest.raises(ValueError, match="finite"):
        save_policy(saved, broken)
    assert saved.read_bytes() == before


def lying(**claims: Any) -> Any:
    def change(tensors: dict[str, torch.Tensor], description: dict[str, Any]) -> dict[str, torch.Tensor]:
        description.update(claims)
        return tensors

    return change


@pytest.mark.parametrize(
    "change",
    [
        lying(statistics_width=2),
        lying(identities=1),
        lying(statistics_width=10**12),
        lying(statistics_width=-1),
        lying(statistics_width=1.0),
        lying(identities=True),
        lying(beta=float("nan")),
        lying(beta=-0.1),
        lying(beta=None),
        lying(format=2),
        lambda tensors, description: description.pop("beta") and tensors,
        lambda tensors, description: tensors | {"extra": torch.ones(1)},
        lambda tensors, description: {k: v for k, v in tensors.items() if k != "biases.2"},
        lambda tensors, description: {k: v.double() for k, v in tensors.items()},
        lambda tensors, description: {k: v.reshape(-1, 1) for k, v in tensors.items()},
    ],
)
def test_descriptions_that_do_not_fit_are_refused(saved: Path, change: Any) -> None:
    forge(saved, change)
    with pytest.raises(CheckpointError):
        load_policy(saved)


def test_offsets_that_lie_are_refused(saved: Path) -> None:
    """A tensor whose shape and byte range disagree, under a right checksum."""
    data = saved.read_bytes().replace(b"[32,32]", b"[32,33]", 1)
    start = data.index(b"sha256") + 12
    data = data[:start] + b"0" * 64 + data[start + 64 :]
    saved.write_bytes(data.replace(b"0" * 64, sealed_file._checksum(data).encode(), 1))
    with pytest.raises(CheckpointError):
        load_policy(saved)


def test_only_policies_are_saved_and_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Linear"):
        save_policy(tmp_path / "file", torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        load_policy(tmp_path / "nowhere")
    assert not os.listdir(tmp_path)


# Atomic writes


@pytest.mark.parametrize("step", ["fsync", "replace", "fdopen"])
def test_a_failed_write_leaves_the_old_file_and_no_litter(
    saved: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space"):
        save_policy(saved, policy(beta=0.7))
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        atomic_write_bytes(tmp_path / "no" / "file", b"")


def test_the_data_is_on_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=original: (order.append(n), f(*a))[1])
    atomic_write_bytes(tmp_path / "file", b"data")
    assert order == ["fsync", "replace", "fsync"]  # the last one is the folder


def test_links_and_permissions_are_kept(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    atomic_write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    mask = os.umask(0o027)
    try:
        atomic_write_bytes(tmp_path / "fresh", b"")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) == 0o640


def test_nothing_is_opened_for_writing_in_place(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.open

    def careful(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        assert str(file) != str(saved) or "r" in mode
        return original(file, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", careful)
    save_policy(saved, policy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_what_would_be_refused_is_not_written(saved: Path, dtype: torch.dtype) -> None:
    before = saved.read_bytes()
    with pytest.raises(
        ValueError, match=rf"policy must have float32 weights, got {dtype}; policy\.float\(\)"
    ):
        save_policy(saved, policy().to(dtype))
    assert saved.read_bytes() == before
    save_policy(saved, policy().to(dtype).float())
    load_policy(saved)
