# Two commands for newcomers: `make demo` and `make test`. Both create .venv with the torch of constraints.txt (a CPU build will do).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One thread per process: small models gain nothing from more, and the test workers share the cores.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test classes test-oldest test-engines test-engines-next test-wheel gpu docs clean

$(VENV)/.base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

# torchvision (with num2words and timm) and Triton are for one test each and out of sight of the others: where they are importable,
# other image processors run, and torch compiles with it.
$(VENV)/.test: $(VENV)/.base
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test,docs,demo]'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target $(VENV)/torchvision-only torchvision==0.28.0
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target $(VENV)/triton-only triton==3.7.1
	$(BIN)/python -m pip install -q --disable-pip-version-check --target $(VENV)/torchvision-only num2words==0.5.14 \
	  || echo "num2words could not be installed: the test of SmolVLM's own processor will be skipped"
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target $(VENV)/torchvision-only timm==1.0.31 \
	  || echo "timm could not be installed: the tests of towers that come from it (Gemma 3n) will be skipped"
	touch $@

demo: $(VENV)/.base
	$(BIN)/fsr ask "what color is the umbrella?" --keep 16 --compare --save kept.png

test: $(VENV)/.test
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# Every image-text-to-text class of this Transformers release on a tiny twin, compared with docs/classes.md: a minute.
classes: $(VENV)/.test
	$(BIN)/python benchmarks/class_map.py --check

# The oldest Transformers that is supported, on the tests that touch models: one more wheel beside the same environment.
OLDEST := $(VENV)/transformers-5.18
$(OLDEST)/.there: $(VENV)/.test
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target $(OLDEST) transformers==5.18.0
	touch $@

test-oldest: $(OLDEST)/.there
	PYTHONPATH=$(OLDEST) $(BIN)/python -m pytest -q -n 2 --dist loadfile tests/test_llava_*.py tests/test_families_*.py \
	  tests/test_pruner_lifecycle.py tests/test_pipeline_shorten.py tests/test_pipeline_encode.py tests/test_relevance.py \
	  tests/test_siglip_relevance.py tests/test_calls_rows.py tests/test_calls_encoded.py tests/test_calls_caches.py tests/test_calls_in_llm.py tests/test_calls_reported.py tests/test_calls_between.py tests/test_in_llm*.py tests/test_cli.py

# Real vLLM, lmms-eval and Ray, in an environment of their own (they pin an older Transformers): about five minutes to
# install, 3 GB. Where its packages cannot be had, the tests say that they were skipped, and why.
ENGINES ?= .venv-engines
$(ENGINES)/.there: pyproject.toml constraints.txt tests/engines/requirements.txt tests/engines/no_deps.txt
	PYTHON=$(PYTHON) tests/engines/install $(ENGINES)
	touch $@

# Two runs beside each other: an engine per family, and everything else (its words come when it is done).
test-engines: $(ENGINES)/.there
	$(ENGINES)/bin/python -m pytest -q tests/engines --ignore=tests/engines/test_vllm.py >$(ENGINES)/others.log 2>&1 & others=$$!; \
	status=0; $(ENGINES)/bin/python -m pytest -q tests/engines/test_vllm.py || status=$$?; \
	wait $$others || status=$$?; cat $(ENGINES)/others.log; exit $$status

# The newer of the two vLLM releases that are supported, on one suite of each kind: its Python code on the CPU kernels of
# the older one (see the script).
NEXT := $(ENGINES)/vllm-0.33.0
$(NEXT)/.there: $(ENGINES)/.there tests/engines/next_release
	tests/engines/next_release $(ENGINES) 0.33.0
	touch $@

test-engines-next: $(NEXT)/.there
	PYTHONPATH=$(NEXT) $(ENGINES)/bin/python -m pytest -q tests/engines/test_vllm.py -k "text_tower or qwen3 and not moe or internvl or gemma3"

# The built wheel in an empty environment (only torch is lent to it), and `fsr ask` from another folder.
test-wheel: $(VENV)/.base
	.ci/wheel $(VENV)

# Everything that only a GPU can show, in at most nine minutes: JSON files and runs/gpu/page.md. On a machine without a
# network run `benchmarks/gpu/run` itself (benchmarks/gpu/README.md says what it needs); `ARGS=--pretend` rehearses it.
gpu: $(VENV)/.test
	benchmarks/gpu/run $(ARGS)

# The site, in site/. Pages open from the folder; searching them needs a server (python -m http.server -d site).
docs: $(VENV)/.test
	$(BIN)/python -m zensical build --clean --strict

clean:
	rm -rf $(VENV) $(ENGINES) site .cache kept.png
