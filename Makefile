# Two commands do the work: `make book` and `make test`. Both set up what they need in .venv, with pip alone.

PYTHON ?= python3
PY     := .venv/bin/python
READY  := .venv/.ready
SITE   := _build/html/index.html

# The same number of threads and the same precision wherever the chapters run: their digits depend on them (see book/_tools/execute.py).
export OMP_NUM_THREADS := 2
export PARTLIB_PRECISION := float32
export PYTHONHASHSEED := 0
# Nothing that this machine's owner has set for other work reaches into the environment.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_USER := 0
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help setup book execute site test lab lock clean

help:  ## show these lines
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

book: execute  ## execute every chapter, then build the site
	@$(MAKE) --no-print-directory site

execute: $(READY)  ## execute every chapter, without the site
	$(PY) book/_tools/execute.py

site: $(READY)  ## build the site from the chapters as they are stored
	@rm -rf _build/html
	.venv/bin/jupyter-book build book --config _config.yml --path-output . -W -n --keep-going --all --quiet
	@echo "the book: $(CURDIR)/$(SITE)"

test: site  ## run everything: unit tests, chapters against their stored outputs, checks of the site
	TQDM_DISABLE=1 $(PY) -m pytest tests book --nbval --nbval-current-env \
	  --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout 600 --durations 8

lab: $(READY)  ## open the chapters in JupyterLab
	$(PY) -m jupyterlab --notebook-dir book

setup: $(READY)  ## make the environment in .venv (the other commands do it by themselves)

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' || { \
	  echo "$(PYTHON) is too old or missing: the book needs Python 3.11.4 or newer; name one, as in: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "setting up .venv: some 3 GB to download the first time, 6.5 GB on disk"
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --requirement requirements.lock
	$(PY) -m pip install --no-deps --no-build-isolation --editable .
	@touch $@

lock:  ## pin anew: the newest packages that pyproject.toml allows, for every system
	$(PYTHON) -m venv _build/uv
	_build/uv/bin/python -m pip install --quiet uv
	_build/uv/bin/uv pip compile pyproject.toml --universal --all-extras --python-version 3.11 --upgrade \
	  --quiet --no-emit-index-url --no-annotate --no-header --output-file requirements.lock

clean:  ## remove the site and the environment; chapters, features and downloads stay
	rm -rf _build .venv
