"""Checkpoints under faults: whole, or refused, and the previous file never lost."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import multiprocessing
import os
import pickle
import random
import struct
import time
from collections import namedtuple
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch

from ala_metric import AlaMetricError, CheckpointError
from ala_metric.training import load_checkpoint, save_checkpoint

HEADER = struct.Struct("<8sI32sQ")


def state(step: int = 1) -> dict:
    return {
        "step": step,
        "weights": torch.full((500,), float(step)),
        "nested": [{"a": (1, None, True, "x", b"y")}],
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.ckpt"
    save_checkpoint(path, state())
    return path


def forge(path: Path, payload: bytes, version: int = 1) -> None:
    """A file whose header is right for any payload."""
    header = HEADER.pack(b"ALACKPT\n", version, hashlib.sha256(payload).digest(), len(payload))
    path.write_bytes(header + payload)


def test_what_is_saved_is_loaded(file: Path) -> None:
    loaded = load_checkpoint(file)
    assert loaded["step"] == 1
    assert loaded["nested"] == state()["nested"]
    assert torch.equal(loaded["weights"], state()["weights"])
    assert [entry.name for entry in file.parent.iterdir()] == ["run.ckpt"]


def test_states_of_real_parts_survive(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    save_checkpoint(tmp_path / "c", {name: part.state_dict() for name, part in parts.items()})
    loaded = load_checkpoint(tmp_path / "c")
    for name, part in parts.items():
        part.load_state_dict(loaded[name])
    assert torch.equal(
        loaded["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"]
    )


def test_every_flipped_byte_is_seen(file: Path) -> None:
    whole = file.read_bytes()
    positions = [*range(HEADER.size + 4), *range(HEADER.size, len(whole), 61), len(whole) - 1]
    for position in positions:
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        with pytest.raises(CheckpointError):
            load_checkpoint(file)


def test_every_truncation_and_extension_is_seen(file: Path) -> None:
    whole = file.read_bytes()
    for length in (*range(HEADER.size + 2), len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load_checkpoint(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(file)


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("container", ["pickle", "torch"])
def test_a_malicious_pickle_is_not_run(tmp_path: Path, container: str) -> None:
    evil = {"step": Malicious(tmp_path / "pwned")}
    buffer = io.BytesIO()
    if container == "pickle":
        pickle.dump(evil, buffer, protocol=2)  # the protocol of torch.save
    else:
        torch.save(evil, buffer)
    forge(tmp_path / "evil", buffer.getvalue())
    with pytest.raises(CheckpointError, match="plain data"):
        load_checkpoint(tmp_path / "evil")
    assert not (tmp_path / "pwned").exists()


def test_other_kinds_of_file_are_refused(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "plain.pt")
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello")
    for name in ("plain.pt", "empty", "text"):
        with pytest.raises(CheckpointError, match=f"{name} is not an ala_metric checkpoint"):
            load_checkpoint(tmp_path / name)
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    forge(tmp_path / "list", buffer.getvalue())
    with pytest.raises(CheckpointError, match="must hold a dict, got list"):
        load_checkpoint(tmp_path / "list")
    forge(tmp_path / "newer", buffer.getvalue(), version=2)
    with pytest.raises(CheckpointError, match="version 2, expected 1"):
        load_checkpoint(tmp_path / "newer")
    assert issubclass(CheckpointError, AlaMetricError)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        save_checkpoint(tmp_path / "none" / "c", state())


Point = namedtuple("Point", "x")


class Tagged(torch.Tensor):
    """A tensor of a user's own kind."""


class Note:
    """What a user writes on a parameter."""


def noted(value: torch.Tensor, note: object) -> torch.Tensor:
    value.note = note  # type: ignore[attr-defined]
    return value


@pytest.mark.parametrize(
    ("value", "where", "kind"),
    [
        (torch.ones(2).as_subclass(Tagged), "", "Tagged"),
        (noted(torch.ones(2), Note()), r"\.note", "Note"),
        (noted(torch.nn.Parameter(torch.ones(2)), Note()), r"\.note", "Note"),
        (noted(torch.nn.Parameter(torch.ones(2)), torch.ones(1).as_subclass(Tagged)), r"\.note", "Tagged"),
    ],
)
def test_tensors_that_would_not_be_read_back_are_not_written(
    file: Path, value: object, where: str, kind: str
) -> None:
    before = file.read_bytes()
    with pytest.raises(TypeError, match=rf"state\['mean'\]{where} must be plain data .*{kind}"):
        save_checkpoint(file, {"mean": value})
    assert file.read_bytes() == before


def test_parameters_and_their_plain_attributes_are_read_back(file: Path) -> None:
    save_checkpoint(file, {"a": noted(torch.nn.Parameter(torch.ones(2)), 3), "b": torch.eye(2).to_sparse()})
    found = load_checkpoint(file)
    assert (found["a"].note, found["b"].to_dense().tolist()) == (3, [[1.0, 0.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.float64(1.0), "numpy.float64"),
        (np.zeros(2), "numpy.ndarray"),
        (lambda: 0, "function"),
        (Point(1), "Point"),
        (Path("x"), "PosixPath"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(file: Path, value: object, kind: str) -> None:
    before = file.read_bytes()
    with pytest.raises(TypeError, match=rf"state\['a'\]\[0\]\['b'\] must be plain data .*{kind}"):
        save_checkpoint(file, {"a": [{"b": value}]})
    with pytest.raises(TypeError, match="state must be a dict, got list"):
        save_checkpoint(file, [1])
    assert file.read_bytes() == before


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_previous_file(file: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "write":
        real = os.fdopen

        def fdopen(*args: object, **kwargs: object) -> object:
            opened = real(*args, **kwargs)
            raw = opened.raw
            opened.detach()

            class Full(io.BufferedWriter):
                write = full

            return Full(raw)

        monkeypatch.setattr(os, "fdopen", fdopen)
    else:
        monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(file, state(2))
    monkeypatch.undo()
    assert file.read_bytes() == before
    assert [entry.name for entry in file.parent.iterdir()] == ["run.ckpt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders")
def test_a_read_only_folder_is_an_os_error(file: Path) -> None:
    before = file.read_bytes()
    file.parent.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            save_checkpoint(file, state(2))
    finally:
        file.parent.chmod(0o700)
    assert file.read_bytes() == before


def save_forever(path: Path, last: int, reported: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        last += 1
        save_checkpoint(path, {"step": last, "weights": torch.full((400_000,), float(last))})
        reported.send(last)


@pytest.mark.slow
def test_kill_nine_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])  # torch is imported once, not per kill
    path, last, generator = tmp_path / "run.ckpt", 0, random.Random(0)
    for _ in range(25):
        receiver, sender = processes.Pipe(duplex=False)
        saver = processes.Process(target=save_forever, args=(path, last, sender))
        saver.start()
        sender.close()
        last = receiver.recv()
        time.sleep(generator.uniform(0, 0.05))
        saver.kill()
        saver.join()
        with contextlib.suppress(EOFError):
            while True:
                last = receiver.recv()
        loaded = load_checkpoint(path)
        assert loaded["step"] in (last, last + 1)  # the last one reported, or the one in the making
        assert torch.equal(loaded["weights"], torch.full((400_000,), float(loaded["step"])))
        last = loaded["step"]
