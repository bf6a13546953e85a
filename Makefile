# make demo: see it work.  make test: check everything.  make help: the rest.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= $(shell $(PYTHON) -c "import os; print(min(8, os.cpu_count() or 1))")
NB ?= $(sort $(wildcard nbs/*.ipynb nbs/*/*.ipynb))
PORT ?= 8000

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
ASSETS := docs/_static/tex-svg.js docs/_static/embed.js
SITE := docs/_build/html
# Stamps carry what was asked for, not when: nbdev touches pyproject.toml.
ASKED := $(shell cat pyproject.toml constraints.txt | git hash-object --stdin)
RUNTIME := $(VENV)/.runtime-$(ASKED)
DEV := $(VENV)/.dev-$(ASKED)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test house notebooks-test pytest notebooks export format readme pictures docs docs-assets docs-serve clean

help:  ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 26

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed')"
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): | $(BIN)/python
	@echo "installing tracin_nb into $(VENV) (the first time takes some minutes)"
	$(PIP) -e .
	@touch $@

$(DEV): | $(BIN)/python
	@echo "installing tracin_nb and its tools into $(VENV) (the first time takes some minutes)"
	$(PIP) -e ".[dev,docs]"
	@touch $@ $(RUNTIME)

demo: $(RUNTIME)  ## predict indications of a drug on DrugMechDB and explain one
	$(BIN)/tracin demo

test: house docs notebooks-test pytest  ## check everything, what fails fastest first
	@echo "make test: all passed (house rules, site, $(words $(NB)) notebooks, tests)"

house: $(DEV)  ## exported == notebooks, README and settings up to date, stored outputs, style
	@echo "== house rules"
	$(BIN)/python -m pytest -q tests/test_house.py

notebooks-test: $(DEV)  ## run the notebooks as tests
	@echo "== $(words $(NB)) notebooks, $(WORKERS) at a time"
	OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers $(WORKERS)

pytest: $(DEV)  ## run tests/ (tests/test_site.py looks at the site that `make docs` built)
	@echo "== tests, one file more at a time than cores: many wait for other processes"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations 30 --numprocesses $$(($(WORKERS) + 1)) --dist loadfile --no-loadscope-reorder --ignore tests/test_house.py tests

notebooks: $(DEV) export  ## run the notebooks (NB=... for some, SLOW=1: slow cells, too), store outputs
	$(BIN)/python tools/notebooks.py run $(if $(SLOW),--slow) $(NB)

export: $(DEV)  ## write tracin_nb/ from the notebooks, and clean them
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean

format: $(DEV)  ## format and lint notebooks, tests and tools, then export
	$(BIN)/ruff format -q .
	$(BIN)/ruff check -q --fix .
	@$(MAKE) -s export

readme: $(DEV)  ## write README.md from nbs/index.ipynb
	$(BIN)/python tools/notebooks.py readme

pictures: $(DEV)  ## take the pictures of the app on the start page (RUN=runs/demo; needs Chromium)
	$(BIN)/python tools/pictures.py $(RUN)

docs: $(DEV) docs-assets  ## build the site into docs/_build/html
	@echo "== site"
	@rm -rf docs/_build
	$(BIN)/sphinx-build -j $(WORKERS) -qW --keep-going -c docs nbs $(SITE)
	@echo "the site is at $(SITE)/index.html"

docs-assets: $(if $(shell command -v npm),$(ASSETS))  ## fetch MathJax and the widget manager for the site
	@for f in $(ASSETS); do test -e $$f || echo "no npm, so no $$f: formulas stay TeX, widgets stay text"; done

docs/_static/tex-svg.js: FILE = mathjax@3.2.2 package/es5/tex-svg.js
docs/_static/embed.js: FILE = @jupyter-widgets/html-manager@1.0.15 package/dist/embed.js
$(ASSETS):
	@echo "fetching $@"
	@tmp=$$(mktemp -d) && tgz=$$(npm pack --silent --pack-destination $$tmp $(firstword $(FILE))) \
	  && tar -xzf $$tmp/$$tgz -C $$tmp $(lastword $(FILE)) && mv $$tmp/$(lastword $(FILE)) $@ && rm -r $$tmp

docs-serve: docs  ## show the site at localhost (PORT=8000)
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory $(SITE) $(PORT)

clean:  ## remove what was built (not the environment)
	rm -rf docs/_build nbs/api nbs/rooms build dist _docs _proc .pytest_cache .mypy_cache
