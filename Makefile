# Every target sets up .venv by itself, once; it is set up anew when pyproject.toml changes.

PYTHON ?= python3
JOBS ?= 2
EXTRAS ?= all
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The workers share the cores, so each computes on one thread.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 \
	XLA_FLAGS=--xla_cpu_multi_thread_eigen=false
# Shapes and types of every call, not of the maths alone.
ALL_TYPES := --jaxtyping-packages=pyro_dvae,numpyro_dvae,beartype.beartype

.DEFAULT_GOAL := help
.PHONY: help demo docs package bench test test-slow test-floor long-run coverage mutants lint typecheck clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]' --group test
	touch $@

demo: $(READY) ## compare the inference algorithms on real data, into out/demo
	$(BIN)/python examples/tools/compare.py --out out/demo

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

docs: $(VENV)/.docs ## build the site into docs/_build/html, tutorials run, and check it
	$(BIN)/codespell docs README.md CHANGELOG.md
	$(ONE_THREAD) $(BIN)/python -m sphinx --fail-on-warning --keep-going -b html docs docs/_build/html
	$(BIN)/python docs/check.py docs/_build/html

package: $(READY) ## build wheel and sdist, and use them in empty environments, an extra each
	$(BIN)/python tests/package.py

bench: $(READY) ## time steps against steps by hand, and compare with the kept ratios
	$(ONE_THREAD) $(BIN)/python examples/benchmarks/bench.py

test: $(READY) ## run the test suite
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-slow: $(READY) ## run the checks of minutes, all with types, and JAX's with its leak checker
	$(ONE_THREAD) JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest $(ALL_TYPES) -n $(JOBS) --dist worksteal -m slow
	$(ONE_THREAD) JAX_DISABLE_MOST_OPTIMIZATIONS=0 JAX_ENABLE_X64=1 JAX_CHECK_TRACER_LEAKS=1 $(BIN)/python -m pytest $(ALL_TYPES) -n $(JOBS) --dist worksteal -k numpyro

mutants: $(READY) ## break the packages on purpose, one fault at a time: do the tests notice?
	$(ONE_THREAD) $(BIN)/python tests/mutants.py

long-run: $(READY) ## train a tiny model for 200000 steps and look for growth
	$(ONE_THREAD) $(BIN)/python tests/long_run.py numpyro
	$(ONE_THREAD) $(BIN)/python tests/long_run.py pyro

test-floor: ## run the test suite on the oldest versions that pyproject.toml admits
	$(PYTHON) -m venv $(VENV)-floor
	$(VENV)-floor/bin/python -m pip install --quiet --upgrade 'pip>=25.1' 'uv>=0.5'
	VIRTUAL_ENV=$(VENV)-floor $(VENV)-floor/bin/uv pip install --quiet --resolution lowest-direct --compile-bytecode \
		--editable '.[all]' --group test
	$(ONE_THREAD) $(VENV)-floor/bin/python -m pytest -n $(JOBS) --dist worksteal

coverage: $(READY) ## run the test suite, both packages in full, and list the branches that it leaves out
	$(BIN)/python -m pip install --quiet 'coverage>=7.10'
	rm -f .coverage .coverage.*
	$(ONE_THREAD) $(BIN)/python -m coverage run -m pytest -p no:xdist -m 'not slow or thrifty'
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

lint: $(READY) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(READY) ## check types
	$(BIN)/mypy

clean: ## remove the environment, caches and outputs
	rm -rf $(VENV) $(VENV)-floor .pytest_cache .ruff_cache .mypy_cache .hypothesis out build *.egg-info docs/_build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
