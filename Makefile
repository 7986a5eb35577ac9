# `make demo` and `make test` are all that a fresh machine needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin
PIP := $(RUN)/python -m pip install -q -c constraints.txt

.PHONY: methods reference demo test check lint test-full bench-gpu docs docs-site clean

demo: $(VENV)/installed
	@$(RUN)/inkwash generate "a taxi, noto style" --cfg-scale 2 --sampler euler_ancestral --seed 7 --output taxi.png
	@echo "the picture is $(CURDIR)/taxi.png"

test: check

# pytest also runs the examples of the README and of the docs, in temporary folders; compiled modules are kept, since
# tests start the program some hundred times
check: lint
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(RUN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/installed-dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/pyright
	$(RUN)/lint-imports

test-full: $(VENV)/installed-dev
	$(RUN)/python -m pytest -m full

# ours beside diffusers, eager and as graphs; says so where there is no GPU
bench-gpu: $(VENV)/installed-dev
	$(RUN)/python benchmarks/speed.py --device cuda --out build/speed-gpu.json

# the docs' pictures, drawn again by the commands that the guide names
SAMPLERS = $(shell $(RUN)/python -c "from inkwash.pipeline.names import *; print(*SAMPLER_NAMES, sep=',')")
docs: $(VENV)/installed
	$(RUN)/inkwash explain denoise "a rocket, twemoji style" --cfg-scale 2 --seed 3 --output docs/pictures/denoise.png
	$(RUN)/inkwash generate "" --width 256 --region "0,0,0.5,1=a penguin, twemoji style" --region "0.5,0,1,1=a taxi, noto style" \
		--cfg-scale 2 --sampler euler_ancestral --seed 3 --output docs/pictures/regions.png
	rm -rf build/sheets && mkdir -p build/sheets
	$(RUN)/inkwash generate "a rocket, twemoji style" --cfg-scale 2 --seed 3 --grid "sampler=$(SAMPLERS)" --output build/sheets/samplers.png
	$(RUN)/inkwash generate "a rocket, twemoji style" --seed 3 --grid steps=5,10,20,40 cfg_scale=1,2,4,8 --output build/sheets/grid.png
	cp build/sheets/samplers.png build/sheets/grid.png docs/pictures
	$(RUN)/python docs/sheets.py
	$(RUN)/python docs/sheets.py controls soft_masks
	$(RUN)/python docs/screens.py $$(command -v chromium)

# the documentation as a site, in build/site; fails for a link that leads nowhere
docs-site: $(VENV)/installed-docs
	$(RUN)/zensical build --strict

# the typed methods of Pipeline, from the table of tasks
methods:
	$(RUN)/python -m tools.methods

# the page of tasks and options, from the same table
reference:
	$(RUN)/python -m tools.reference

clean:
	rm -rf $(VENV) build/lib src/inkwash.egg-info

$(RUN)/python:
	$(PYTHON) -m venv $(VENV)

# torch goes in by itself, so that no later line can change it; a build of the same version for a GPU that is
# already in .venv stays
$(VENV)/installed: pyproject.toml constraints.txt | $(RUN)/python
	$(PIP) torch==2.13.0
	$(PIP) -e .
	touch $@

# k-diffusion is an oracle for the samplers. It goes in alone, since what it depends on includes torchvision,
# which has no build that works with a CPU-only torch; its sampling formulas need none of that.
$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e ".[dev]"
	$(PIP) --no-deps k-diffusion==0.1.1.post1 spandrel==0.4.2
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) -e ".[docs]"
	touch $@
