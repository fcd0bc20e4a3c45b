# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Both create .venv in this folder with the versions pinned in constraints.txt.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
ENV := $(VENV)/.ready
NATIVE_SOURCES := $(shell find csrc cmake -type f 2>/dev/null) CMakeLists.txt
NATIVE := $(VENV)/.built
JOBS ?= 2

.PHONY: help demo test lint test-sanitize bench-kernels bench-classification-small wheel clean

help:
	@echo "make demo           install, train fixed and adaptive losses side by side, write report.html"
	@echo "make test           lint, types, docstrings and the whole test suite"
	@echo "make test-sanitize  the C++ tests under ThreadSanitizer"
	@echo "make bench-kernels  speed and memory of the fused kernels against their peers"
	@echo "make bench-classification-small  the methods of the classification tables on digits, in minutes"
	@echo "make wheel          a wheel in dist/"
	@echo "make clean          remove everything that the other targets made"

# torch goes first and alone: its pin decides which build is taken, and nothing later may replace it.
$(ENV): constraints.txt pyproject.toml VERSION
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON) found; set PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed, found: $$($(PYTHON) --version)"; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt "setuptools>=77" wheel torch
	$(PIP) install --quiet --constraint constraints.txt cmake ninja pybind11
	ALA_METRIC_BUILD=none $(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[cli,dev,faiss]'
	touch $(ENV)

$(NATIVE): $(ENV) setup.py $(NATIVE_SOURCES)
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	touch $(NATIVE)

demo: $(NATIVE)
	$(VENV)/bin/ala-metric demo --out report.html

lint: $(ENV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run --Werror $$(find csrc examples -name '*.h' -o -name '*.cpp' -o -name '*.hpp')

test: $(NATIVE) lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --doctest-modules --doctest-ignore-import-errors tests ala_metric

test-sanitize: $(NATIVE)
	$(PY) -m pytest tests/test_sanitizers.py --sanitizer thread

bench-kernels: $(NATIVE)
	$(PY) -m benchmarks kernels

# 3 seeds, half the steps; the tables in benchmarks/README.md are made with 10 seeds and --steps 600.
bench-classification-small: $(ENV)
	$(PY) -m benchmarks classification --data digits --table 1 2 4 5 --networks perceptron --tasks digits-clean \
		--seeds 3 --steps 300 --workers $(JOBS) --out runs/classification-small

wheel: $(NATIVE)
	$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist report.html runs ala_metric/_lib *.egg-info .mypy_cache .ruff_cache
