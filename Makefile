# Every target makes what it needs; start with `make run` or `make test`.
PYTHON ?= python3
VENV := .venv
# The packages of the extra `oracles` that are light. Without one, the tests that need it are skipped.
ORACLES := mambapy peer-pytorch product-key-memory transformers
BIN := $(VENV)/bin
SPACE ?= quickstart
# One thread per process: small models train faster on many processes than on many threads.
export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help run test test-all check bench pictures pages catalogue build wheel-check clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|' 2>/dev/null || grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "archsearch needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	-$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt $(ORACLES)
	-$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt triton
	@touch $@

run: $(VENV)/installed  ## search the quickstart space (SPACE=... for another)
	$(BIN)/archsearch run $(SPACE)

test: $(VENV)/installed-dev  ## run the tests
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

test-all: $(VENV)/installed-dev  ## run the slow tests too
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m ''

check: $(VENV)/installed-dev  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed-dev  ## measure what benchmarks/results/ holds
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/mup_groups.py --out benchmarks/results/mup_groups.json
	$(BIN)/python benchmarks/transfer.py
	$(BIN)/python benchmarks/scale_overhead.py
	$(BIN)/python benchmarks/threads.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/export.py --out benchmarks/results/export.json
	$(BIN)/python -m benchmarks.native_parity
	$(BIN)/python benchmarks/blocks.py --out benchmarks/results/blocks.json
	$(BIN)/python benchmarks/samplers.py toy --seeds 10 --out benchmarks/results/samplers.json
	$(BIN)/python benchmarks/samplers.py nb201 --trials 50 100 200 --out benchmarks/results/samplers.json
	$(BIN)/python benchmarks/hybridbench.py measure --out benchmarks/results/hybridbench.json
	$(BIN)/python benchmarks/proposals.py --out benchmarks/results/proposals.json
	$(BIN)/archsearch run quickstart
	$(BIN)/archsearch fidelity runs/quickstart --genomes 16 --width 256 --steps 200
	cp runs/quickstart/fidelity/fidelity.json runs/quickstart/fidelity/fidelity.svg benchmarks/results/
	$(BIN)/archsearch run quickstart --set 'tasks.use=[text]' --name words --trials 4
	$(BIN)/archsearch fidelity runs/words --genomes 16 --width 256 --steps 200
	cp runs/words/fidelity/fidelity.json benchmarks/results/fidelity_text.json
	cp runs/words/fidelity/fidelity.svg benchmarks/results/fidelity_text.svg

pictures: $(VENV)/installed-dev  ## draw the pictures of the README anew
	$(BIN)/python docs/pictures.py

pages: $(VENV)/installed-dev  ## write the page of every block, docs/blocks/, anew
	$(BIN)/python docs/blocks.py

catalogue: $(VENV)/installed-dev  ## write what the blocks declare to archsearch/blocks/catalogue.json
	$(BIN)/python -m archsearch.blocks

build: $(VENV)/installed-dev  ## build wheel and sdist into dist/
	rm -rf dist
	$(BIN)/python -m build -q --outdir dist

wheel-check: build  ## install the wheel in an empty environment and search with it
	sh .ci/wheel-check

clean:  ## remove what the targets made
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
