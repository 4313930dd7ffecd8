# Two commands set everything up on a machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

export TF_CPP_MIN_LOG_LEVEL ?= 3
# Some machines and images set it. With --no-compile below, every command would then compile all of TensorFlow's Python
# again: `import keras` takes 20 s of processor time, and 9 where Python keeps what it compiled (an AMD EPYC).
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install install-dev demo serve story test test-slow test-by-hand lint docs lock clean
install: .venv/installed
install-dev: .venv/installed-dev

# --no-compile: half of the time goes into compiling modules of which few are ever imported; Python compiles those.
.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Tellapart needs Python 3.11 or newer; PYTHON=... names one." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[train]'
	touch $@

# With the packages for use, in one go: pip looks for versions once, not twice.
.venv/installed-dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch .venv/installed $@

# JAX without TensorFlow, for the tests that train on it.
.venv-jax/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-jax
	.venv-jax/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[jax]'
	touch $@

demo: install
	$(BIN)/tellapart demo

# The demo's model behind HTTP, with a page: open the address that it prints.
serve: install
	test -f demo/bundle/bundle.json || $(BIN)/tellapart demo
	$(BIN)/tellapart serve demo/bundle

# The whole loop on photos9 where it is, else on drawn photos: 10 to 15 minutes, and a picture of it.
story: install-dev
	$(BIN)/python benchmarks/story.py $(wildcard ../shared/data/photos9) \
		$(addprefix --weights ,$(wildcard ../shared/weights/mobilenet_v2_1.0_224_no_top.weights.h5))

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A thread for each of the two workers, here and in the slower tier: their networks are small, and with more threads the
# workers wait for one another (226 s, 194 s with one, docs/decisions.md). `make test-by-hand`, `make demo` and the run
# on real photos in `.ci/run` train with several.
test: lint .venv-jax/installed
	TF_NUM_INTRAOP_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow and not by_hand' -n 2 --dist loadfile --no-loadscope-reorder -rs

# Minutes: whole reports, kills of every kind, wheels in empty environments. `.ci/run` runs them after `make test`.
test-slow: install-dev .venv-jax/installed
	TF_NUM_INTRAOP_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'slow and not by_hand' -n 2 --dist loadfile --no-loadscope-reorder --durations=12 -rs

# Minutes each, and in their parts covered above: no part of `.ci/run`, which must end within thirty.
test-by-hand: install-dev .venv-jax/installed
	$(BIN)/python -m pytest -m by_hand -rs

docs: install-dev
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_floors_picture.py

# Pins every package for every platform; the file names no registry.
lock: install-dev
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --all-extras --no-emit-index-url \
		--no-header --no-annotate --upgrade --output-file constraints.txt

clean:
	rm -rf .venv .venv-jax demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
