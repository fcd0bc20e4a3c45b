# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Both create .venv in this folder with the versions pinned in constraints.txt.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
ENV := $(VENV)/.ready
NATIVE_SOURCES := $(shell find csrc cmake -type f 2>/dev/null) CMakeLists.txt
NATIVE := $(VENV)/.built
DOCS := $(VENV)/.docs
JOBS ?= 2
TEST_JOBS ?= 3 # on two cores: some tests wait for other processes

.PHONY: help demo test lint test-sanitize bench-kernels bench-classification-small cuda-report docs wheel clean

help:
	@echo "make demo           install, train fixed and adaptive losses side by side, write report.html"
	@echo "make test           lint, types, docstrings and the whole test suite"
	@echo "make test-sanitize  the C++ tests under ThreadSanitizer"
	@echo "make bench-kernels  speed and memory of the fused kernels against their peers"
	@echo "make bench-classification-small  the methods of the classification tables on digits, in minutes"
	@echo "make cuda-report    registers and spills of the CUDA kernels on all architectures (needs nvcc, no GPU)"
	@echo "make docs           the documentation in build/docs; a warning or a broken link is an error"
	@echo "make wheel          a repaired and tested wheel, and the sources, in dist/"
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
	$(VENV)/bin/clang-format --dry-run --Werror $$(find csrc examples tests -name '*.h' -o -name '*.cpp' -o -name '*.hpp' -o -name '*.cu' -o -name '*.cuh')

test: $(NATIVE) lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(TEST_JOBS) --doctest-modules --doctest-ignore-import-errors tests ala_metric

test-sanitize: $(NATIVE)
	$(PY) -m pytest tests/test_sanitizers.py --sanitizer thread
	$(PY) -m pytest tests/test_cuda_emulation.py -k sanitizer --sanitizer thread

bench-kernels: $(NATIVE)
	$(PY) -m benchmarks kernels

# 3 seeds, half the steps; the tables in benchmarks/README.md are made with 10 seeds and --steps 600.
bench-classification-small: $(ENV)
	$(PY) -m benchmarks classification --data digits --table 1 2 4 5 --networks perceptron --tasks digits-clean \
		--seeds 3 --steps 300 --workers $(JOBS) --out runs/classification-small

cuda-report: $(ENV)
	$(PY) -m benchmarks ptxas --jobs $(JOBS)

$(DOCS): $(NATIVE)
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[docs]'
	touch $(DOCS)

docs: $(DOCS)
	rm -rf build/docs
	$(PY) -m sphinx --fail-on-warning --keep-going --quiet --builder html docs build/docs
	$(PY) docs/check_links.py build/docs

# The wheel is built from the sources archive: what is missing there is missing for everyone.
# libtorch is not packed: it comes with the user's torch.
wheel: $(NATIVE)
	rm -rf dist build/wheel
	ALA_METRIC_BUILD=cpu PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m build --no-isolation --outdir build/wheel .
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' \
		--wheel-dir dist build/wheel/*.whl
	cp build/wheel/*.tar.gz dist
	$(PY) -m pytest tests/test_wheel.py --wheel dist/*.whl

clean:
	rm -rf $(VENV) build dist report.html runs ala_metric/_lib *.egg-info .mypy_cache .ruff_cache
