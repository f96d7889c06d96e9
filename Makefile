# Everything that is done with this project is one command; `make` alone lists them.
#
# PYTHON  the interpreter to make the virtual environment with; the first of 3.11 to 3.14 if not given
# VENV    where the virtual environment is
# LOWEST  where that of make test-lowest is; UV_TORCH_BACKEND=cpu spares it gigabytes of CUDA
# JOBS    processes that run the tests
# ARGS    more arguments, such as: make test ARGS="tests/fusion -x", make run ARGS="--help"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
LOWEST ?= .venv-lowest
ARGS ?=
JOBS ?= 2
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python3.14 python; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null \
	&& echo $$python && break; done)

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help
help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: $(STAMP) ## Install the project and its tools into .venv (again only when versions change)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "expected Python 3.11 to 3.14, found none. Try: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

.PHONY: run
run: $(STAMP) ## Run the default federation and write its report: the quickstart
	$(BIN)/fedfuse simulate $(ARGS)

.PHONY: experiments
experiments: $(STAMP) ## Repeat the quickstart experiment and write its results
	$(BIN)/python -m experiments.quickstart.run $(ARGS)

.PHONY: test
test: $(STAMP) ## Run the tests, in two processes
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadgroup $(ARGS)

.PHONY: test-slow
test-slow: $(STAMP) ## Align 10,000 texts a pair of tokenizers, damage 100,000 messages: an hour
	FEDFUSE_EXAMPLES=10000 FEDFUSE_MUTATIONS=100000 $(BIN)/python -m pytest \
		tests/alignment/test_properties.py tests/alignment/test_brute_force.py \
		tests/alignment/test_certain_teacher.py tests/knowledge/test_mutations.py --timeout 0 $(ARGS)

.PHONY: test-real
test-real: $(STAMP) ## Run the tests of real pretrained models, from folders in FEDFUSE_REAL_MODELS
	$(BIN)/python -m pytest tests/real -rs --timeout 0 $(ARGS)

.PHONY: test-lowest
test-lowest: $(STAMP) ## Run the tests with the lowest versions that pyproject.toml allows
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	$(LOWEST)/bin/python -m pytest -W default $(ARGS)

.PHONY: test-kernels
test-kernels: $(STAMP) ## Install Triton (1 GB) and check the GPU's kernels in its interpreter
	$(BIN)/python -m pip install --quiet --disable-pip-version-check triton
	$(BIN)/python -m pytest tests/distillation/test_kernels.py --timeout 0 $(ARGS)

.PHONY: coverage
coverage: $(STAMP) ## Run the tests and fail where less than 90 % of the lines are covered
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered --cov-fail-under=90 $(ARGS)

.PHONY: lint
lint: $(STAMP) ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(STAMP) ## Check types
	$(BIN)/mypy

.PHONY: check
check: lint types test ## Everything that must pass before a commit

.PHONY: clean
clean: ## Remove what the tools made; .venv and runs stay
	rm -rf dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache *.fab
	find fedfuse strategies clients experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +
