# `make demo` and `make test` make .venv by themselves from any Python >= 3.11;
# PYTHON=python3.12 chooses another, VENV=dir another place.
PYTHON ?= $(shell for p in python3 python3.12 python3.13 python3.11 python; do \
  if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; break; fi; done)
VENV ?= .venv
WORKDIR ?= runs/demo
PYTEST_ARGS ?=
FAULTS_ARGS ?=
CHECK_ARGS ?=

# Huge pages for large arrays shorten a training step on a CPU (glibc only).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo test faults lint gpu-check pictures clean

demo: $(VENV)/.run
	$(VENV)/bin/python -m lus_jax.main --config configs/paper.py:demo --workdir $(WORKDIR) \
	  --config.data.prepared_dir=$(WORKDIR)/data

test: $(VENV)/.test lint
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=10 $(PYTEST_ARGS)

# Breaks things on purpose, for about a quarter of an hour: tests/faults/README.md.
faults: $(VENV)/.test
	$(VENV)/bin/python -m tests.faults $(FAULTS_ARGS)

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 was found; name one: make PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.run

# On a machine with a GPU, in under ten minutes: is it right there, and how fast. Without .venv any
# Python that has jax, flax, optax and orbax will do, and PyTorch beside them if there is to be a
# comparison. CHECK_ARGS=--cpu is its small form.
gpu-check:
	$(or $(wildcard $(VENV)/bin/python),$(PYTHON)) -m lus_jax.benchmarks.check --out gpu-check.json $(CHECK_ARGS)

# The pictures of README and docs: of the phantom, and of the demo's report (needs Chromium).
pictures: demo
	mkdir -p docs
	$(VENV)/bin/python -m tfds_builders.lus_phantom.preview \
	  --out docs/phantom.png --gif docs/phantom.gif --size 192
	$(VENV)/bin/python -m tfds_builders.lus_phantom.preview \
	  --out docs/phantom_variety.png --size 192 --variety all
	$(VENV)/bin/python -m lus_jax.tasks.which_target.dose --out docs/dose.svg
	chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --virtual-time-budget=4000 \
	  --window-size=1000,2080 --screenshot=docs/report.png \
	  file://$(abspath $(WORKDIR))/report/index.html

clean:
	rm -rf $(VENV) runs build *.egg-info
