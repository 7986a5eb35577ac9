# `make demo` and `make test` are all that a fresh machine needs.
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin

.PHONY: demo test test-full check lint docs clean

demo: $(VENV)/installed
	$(RUN)/inkwash generate "a red taxi, noto style" --steps 20 --cfg-scale 5 --seed 7 --output taxi.png

test: check

check: lint $(VENV)/installed-dev
	$(RUN)/python -m pytest
	$(RUN)/python -m pytest tests/examples.py

lint: $(VENV)/installed-dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/pyright
	$(RUN)/lint-imports

test-full: $(VENV)/installed-dev
	$(RUN)/python -m pytest -m full

docs: $(VENV)/installed-dev
	$(RUN)/python docs/build.py

clean:
	rm -rf $(VENV) build/lib *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# the constraints pin torch to a build without CUDA; a machine with a GPU installs its own torch first
$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(RUN)/python -m pip install -q -c constraints.txt torch
	$(RUN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(RUN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@
