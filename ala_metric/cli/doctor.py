"""``ala-metric doctor``: what is installed, what runs where and why, and what is missing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from dataclasses import asdict
from typing import Any

import torch

from .. import __version__, native_info, ops
from .console import format_table, install_command, is_installed
from .options import DoctorOptions

DISTRIBUTIONS = ("torch", "numpy", "pytorch-metric-learning", "safetensors")
PURPOSE = {
    "rich": "progress bars",
    "yaml": "options from YAML files",
    "matplotlib": "figures, the glyphs' fonts and the demo's report",
    "PIL": "rendering glyphs, reading images",
    "sklearn": "the digits data set",
    "faiss": "comparing retrieval with faiss",
}


def run(options: DoctorOptions) -> int:
    """Print the findings."""
    findings = examine()
    print(json.dumps(findings, indent=2) if options.json else as_text(findings))
    return 0


def examine() -> dict[str, Any]:
    """Collect the findings as plain data.

    Returns
    -------
    dict
        ``versions``, ``native``, ``devices`` (device -> op -> ``impl`` and ``reason``) and ``missing``
        (optional module -> ``purpose`` and ``command``).

    Examples
    --------
    >>> findings = examine()
    >>> sorted(findings), "cpu" in findings["devices"]
    (['devices', 'missing', 'native', 'versions'], True)
    """
    versions = {"ala-metric": __version__, "python": platform.python_version()}
    versions |= {name: _version(name) for name in DISTRIBUTIONS}
    versions["torch"] = torch.__version__  # says which build, which the name of the package may not
    names = importlib.metadata.packages_distributions()
    for module in PURPOSE:
        if is_installed(module):
            name = names.get(module, [module])[0]
            versions[name] = _version(name)
    info = native_info()
    devices = {"cpu": f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"}
    devices |= {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    return {
        "versions": versions,
        "native": {
            "available": info.available,
            "reason": info.reason,
            "isa": info.isa,
            "cuda_available": info.cuda_available,
            "cuda_reason": info.cuda_reason,
        },
        "devices": {
            device: {"what": what, "ops": {op: asdict(choice) for op, choice in ops.explain(device).items()}}
            for device, what in devices.items()
        },
        "missing": {
            module: {"purpose": purpose, "command": install_command(module)}
            for module, purpose in PURPOSE.items()
            if not is_installed(module)
        },
    }


def as_text(findings: dict[str, Any]) -> str:
    """The findings for people."""
    versions = list(findings["versions"].items())
    native = findings["native"]
    lines = [format_table(("package", "version"), versions), ""]
    lines.append(
        f"native kernels, CPU: yes, for {native['isa']}"
        if native["available"]
        else f"native kernels, CPU: no: {native['reason']}"
    )
    lines.append(
        "native kernels, CUDA: " + ("yes" if native["cuda_available"] else f"no: {native['cuda_reason']}")
    )
    for device, found in findings["devices"].items():
        lines += ["", f"{device} ({found['what']})"]
        for (impl, reason), names in _by_choice(found["ops"]).items():
            lines += [f"  {impl}: {', '.join(names)}", f"    because {reason}"]
    if len(findings["devices"]) == 1:
        lines += ["", "no CUDA device is visible to torch"]
    lines.append("")
    if findings["missing"]:
        lines.append("optional parts that are missing:")
        lines += [
            f"  {name}: {part['purpose']}; {part['command']}" for name, part in findings["missing"].items()
        ]
    else:
        lines.append("no optional part is missing")
    return "\n".join(lines)


def _by_choice(choices: dict[str, dict[str, str]]) -> dict[tuple[str, str], list[str]]:
    """Ops that run the same implementation for the same reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for op, choice in choices.items():
        groups.setdefault((choice["impl"], choice["reason"]), []).append(op)
    return groups


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not found"
