# `make book`, `make site` and `make test` set up .venv by themselves; PYTHON=... chooses the interpreter.
PROFILE  ?= mini
CHAPTERS ?=
ARGS     ?=
BIN      := .venv/bin
READY    := .venv/ready
PYTHONS  := $(or $(PYTHON),python3.13 python3.12 python3.11 python3)

# Training on a CPU is faster where freed memory is kept (results/benchmarks/cost.md; dmlkit/running.py).
KEEP_MEMORY := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184

.PHONY: help book site test lab notebooks format clean

help: ## list these targets
	@sed -n 's/^\([a-z]*\):[^#]*## */  make \1\t/p' Makefile | expand -t 20

book: $(READY) ## run the book, or resume it: PROFILE=mini CHAPTERS=02_baseline_losses ARGS="-p STEPS 300"
	$(BIN)/dmlkit run $(CHAPTERS) --profile $(PROFILE) $(ARGS)

site: $(READY) ## web pages of what was run, in site/: PROFILE=mini
	$(BIN)/dmlkit site --profile $(PROFILE) $(ARGS)

test: $(READY) ## check style, notebooks and code, as CI does
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/dmlkit sync --check
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lab: $(READY) ## read and edit the chapters in JupyterLab
	$(KEEP_MEMORY) $(BIN)/jupyter lab --LabApp.default_url=/lab/tree/book $(ARGS)

notebooks: $(READY) ## build book/*.ipynb from book/*.py
	$(BIN)/dmlkit sync

format: $(READY) ## lay out the Python files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and the tools' caches; data, caches of images and results stay
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info
	find book dmlkit tests -name __pycache__ -prune -exec rm -rf {} +

# An interpreter counts only if it runs (a pyenv shim may not), is 3.11-3.13 and can make environments.
# The stamp comes last, so an interrupted installation is repeated.
$(READY): pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  python=; no_venv=; \
	  for p in $(PYTHONS); do \
	    $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || continue; \
	    if $$p -c 'import ensurepip, venv' 2>/dev/null; then python=$$p; break; else no_venv=$$p; fi; \
	  done; \
	  if [ -n "$$python" ]; then $$python -m venv --clear .venv; \
	  elif [ -n "$$no_venv" ]; then echo "$$no_venv cannot make environments: install its venv module (Debian, Ubuntu: apt install python3-venv)." >&2; exit 1; \
	  else echo "No Python 3.11, 3.12 or 3.13 among: $(PYTHONS). Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; fi; \
	fi
	@echo "Setting up .venv with $$($(BIN)/python -V): 3.3 GB to download, 6.6 GB of disk (10 GB meanwhile), 3 to 10 minutes, once."
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@
