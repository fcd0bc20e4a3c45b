"""Public docstrings say what a caller must know: parameters, shapes, units, errors, equation, example."""

from __future__ import annotations

import importlib
import inspect
import re

import pytest

PACKAGES = ("ops", "losses", "metrics", "classification", "controller", "baselines", "data", "training")
# Rooms whose functions and losses compute something that the literature has an equation for.
EQUATIONS = ("ops", "losses", "metrics", "classification")
# Public there, but without an equation of their own: choices, loaders, results.
NO_EQUATION = {"set_checks", "explain", "available", "Choice", "PairedInterval", "RetrievalResult"} | {
    "VerificationResult",
    "Preset",
    "class_scores",
}

# A formula as mathematics, or in plain text between double backticks.
EQUATION = re.compile(r"\.\. math::|:math:|``[^`]*[=/^][^`]*``")


def public() -> list[tuple[str, object]]:
    found = []
    for package in PACKAGES:
        module = importlib.import_module(f"ala_metric.{package}")
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                found.append((f"{package}.{name}", thing))
    hook = importlib.import_module("ala_metric.integrations.pml").TrainerHook
    found.append(("integrations.TrainerHook", hook))
    top = importlib.import_module("ala_metric")
    found += [(f"ala_metric.{name}", getattr(top, name)) for name in ("ALALoss", "PhiSpec", "native_info")]
    return found


PUBLIC = public()


def parameters(thing: object) -> list[str]:
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return []
    return [p.name for p in signature.parameters.values() if p.name not in ("self", "args", "kwargs")]


def sections(doc: str) -> set[str]:
    return set(re.findall(r"^([A-Z]\w+)\n-{3,}$", inspect.cleandoc(doc), flags=re.MULTILINE))


@pytest.mark.parametrize(("name", "thing"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_docstring(name: str, thing: object) -> None:
    doc = inspect.getdoc(thing) or ""
    assert doc, f"{name} has no docstring"
    found = sections(doc)
    assert ">>>" in doc or _is_error(thing), f"{name} has no runnable example"
    names = [] if _is_error(thing) else parameters(thing)
    if names:
        assert "Parameters" in found, f"{name} has no Parameters section"
        for parameter in names:
            assert re.search(rf"\b{parameter}\b", doc), f"{name} does not describe {parameter}"
    if inspect.isfunction(thing) and inspect.signature(thing).return_annotation not in (None, "None"):
        assert "Returns" in found, f"{name} has no Returns section"
    room, short = name.split(".")
    if room in EQUATIONS and short not in NO_EQUATION:
        assert "Raises" in found or not names, f"{name} does not say which errors it raises"
        assert EQUATION.search(doc), f"{name} does not give its equation"
        if names and room == "ops":
            assert "hape" in doc, f"{name} does not give shapes"


def _is_error(thing: object) -> bool:
    return inspect.isclass(thing) and issubclass(thing, Exception)


def test_annotations_are_complete() -> None:
    for name, thing in PUBLIC:
        if inspect.isfunction(thing):
            signature = inspect.signature(thing)
            missing = [p for p in signature.parameters.values() if p.annotation is inspect.Parameter.empty]
            assert not missing, f"{name}: {missing}"
            assert signature.return_annotation is not inspect.Signature.empty, name
