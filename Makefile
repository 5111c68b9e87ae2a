# `make demo` and `make test` need Python 3.11 or later, make and a C++ compiler; nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Three tests at a time have no use for a second thread each in the matrix products of tiny models.
# On Linux MLX brings reference matrix products, ten times slower than Debian's OpenBLAS where that is there.
OPENBLAS := $(firstword $(wildcard /usr/lib/*-linux-gnu/openblas-pthread/libopenblas.so.0))
PYTEST := OPENBLAS_NUM_THREADS=1 $(if $(OPENBLAS),LD_PRELOAD=$(OPENBLAS)) $(BIN)/python -m pytest
# Tests with processes mostly wait: three at a time keep two cores busy.
PARALLEL := -n 3 --dist worksteal

# Hundreds of processes start in the tests: each would compile all that it imports, where this is set.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check check-fast format lint types imports coverage soak clean install

demo: install
	$(BIN)/graft demo

test: install
	$(PYTEST) $(PARALLEL)

# Format, lint and import arrows, then the tests, with the types beside them: they are done long before.
check: lint imports
	$(MAKE) --jobs=2 types test

# Without what starts processes: under a minute.
check-fast: lint types imports
	$(PYTEST) $(PARALLEL) -m "not processes"

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install
	$(BIN)/mypy

imports: install
	$(BIN)/lint-imports

coverage: install
	$(PYTEST) $(PARALLEL) --cov --cov-report=term:skip-covered

# The long chaos run; SOAK_JOBS and SOAK_SEED change it.
soak: install
	$(PYTEST) -m soak --timeout=7200 -s tests/acceptance/test_chaos.py

install: $(VENV)/.installed

# Python compiles what it imports when it does; compiling all of transformers here took 40 seconds.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
