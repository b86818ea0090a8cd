# Two commands for newcomers: `make demo` and `make test`. Both create .venv with the torch of constraints.txt (a CPU build will do).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One thread per process: small models gain nothing from more, and the test workers share the cores.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test docs clean

$(VENV)/.base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(VENV)/.base
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test,docs,demo]'
	touch $@

demo: $(VENV)/.base
	$(BIN)/fsr ask "what color is the umbrella?" --keep 16 --compare --save kept.png

test: $(VENV)/.test
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# The site, in site/. Pages open from the folder; searching them needs a server (python -m http.server -d site).
docs: $(VENV)/.test
	$(BIN)/python -m zensical build --clean --strict

clean:
	rm -rf $(VENV) site .cache kept.png
