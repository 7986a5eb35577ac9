# `make demo` and `make test` are all that a fresh machine needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin

.PHONY: demo test test-full check lint docs clean

demo: $(VENV)/installed
	$(RUN)/inkwash generate "a red taxi, noto style" --steps 20 --cfg-scale 5 --seed 7 --output taxi.png

test: check

check: lint $(VENV)/installed-dev
	$(RUN)/python -m pytest

lint: $(VENV)/installed-dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/pyright
	$(RUN)/lint-imports

test-full: $(VENV)/installed-dev
	$(RUN)/python -m pytest -m full

# the pictures of the docs, drawn again by the commands that the docs name
docs: $(VENV)/installed
	$(RUN)/inkwash explain denoise "a rocket, twemoji style" --seed 3 --output docs/pictures/denoise.png

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
	# an oracle of the samplers; what it depends on includes torchvision, which its sampling.py does not use
	$(RUN)/python -m pip install -q --no-deps k-diffusion==0.1.1.post1
	touch $@
