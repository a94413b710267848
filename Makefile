# Everything a developer or CI does, by the names that CONTRIBUTING.md uses. Needs make and Python 3.11 or newer.

PYTHON ?= python3
# Extra arguments for what `serve`, `test`, `wheel-test`, `loadtest` and `bench` run: make test ARGS="-k batching"
ARGS ?=

VENV := .venv
WHEEL_VENV := .venv-wheel
MODEL_REPOSITORY := model_repo

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup models serve test test-units test-e2e test-native wheel-test-units wheel-test-e2e wheel-environment check loadtest bench proto wheel wheel-test clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-19s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.stamp ## Create .venv with Preheat (editable), torch and the development tools

$(VENV)/.stamp: pyproject.toml constraints.txt tools/setup.py
	@$(PYTHON) tools/setup.py $(VENV)
	@touch $@

models: setup ## Write the large files of the example models into model_repo
	@$(VENV)/bin/python $(MODEL_REPOSITORY)/materialize.py

serve: setup models ## Serve model_repo
	$(VENV)/bin/preheat serve $(MODEL_REPOSITORY) $(ARGS)

test: test-units test-e2e test-native ## Run the tests against the checkout; with -j2, two parts at a time

test-units: setup models ## Run the tests but those that start a server and talk to it as a client
	$(VENV)/bin/python -m pytest $(ARGS)

# Code 5 of pytest: ARGS left none of them, which is fine.
test-native: setup models ## Run the tests of the transports, and those of the protocol against the native one
	TEST_TRANSPORT=native $(VENV)/bin/python -m pytest tests/e2e $(ARGS) -m protocol
	$(VENV)/bin/python -m pytest tests/e2e $(ARGS) -m transports || [ $$? -eq 5 ]

# In a process of its own: see tests/conftest.py.
test-e2e: setup models ## Run the tests that start a server and talk to it as a client
	$(VENV)/bin/python -m pytest tests/e2e -m "not transports" $(ARGS)

check: setup ## Run the linters and type checks
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo
	$(VENV)/bin/python protos/generate.py --check

loadtest: setup ## Load-test a running server, as loadtests/README.md says: ARGS="--model identity"
	$(VENV)/bin/locust -f loadtests/locustfile.py $(ARGS)

bench: setup models ## Measure the request path, into docs/benchmarks; see benchmarks/suite.py for what it needs
	$(VENV)/bin/python -m benchmarks.suite $(ARGS)

proto: setup ## Generate the protocol's Python code from protos
	$(VENV)/bin/python protos/generate.py

wheel: setup ## Build the wheel into dist
	@rm -rf dist
	$(VENV)/bin/python -m build --wheel --dependency-constraints-txt constraints.txt

wheel-test: wheel-test-units wheel-test-e2e ## Run the tests against the wheel: ARGS="-m 'not compiles'"

wheel-environment: wheel models ## Install the wheel into .venv-wheel
	@$(PYTHON) tools/setup.py $(WHEEL_VENV) --wheel dist/*.whl
	@$(WHEEL_VENV)/bin/python -P -c "import preheat, preheat_backends; \
		strays = [m.__file__ for m in (preheat, preheat_backends) if 'site-packages' not in m.__file__]; \
		assert not strays, f'not imported from the wheel: {strays}'"

# Not `python -m pytest`, which would put the checkout on the path.
wheel-test-units: wheel-environment
	$(WHEEL_VENV)/bin/pytest $(ARGS)

wheel-test-e2e: wheel-environment
	$(WHEEL_VENV)/bin/pytest tests/e2e $(ARGS)

clean: ## Remove the environments, caches and wheels; the models' files stay
	rm -rf $(VENV) $(WHEEL_VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
