# Everything runs in .venv, which `make install` makes. Written for GNU make 3.81 and newer and a POSIX shell.
#
#   make install PYTHON=python3.12                                       another interpreter
#   make install TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu    another build of torch (PyPI's holds CUDA on Linux)
#   make test TESTS=tests/privacy WORKERS=1                              some tests, one process
#   make bench ONLY=privacy                                              one part
#   make image DOCKER_NETWORK=host                                       where the engine has no bridge network

PYTHON ?= python3
WORKERS ?= 2
TESTS ?= tests
BIN := .venv/bin
INSTALLED := .venv/installed
FEDETHOS_IMAGE ?= fedethos:latest
DOCKER_NETWORK ?= default
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help install demo test lint bench wheel wheelhouse image test-docker clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s  %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## make .venv with pinned versions and fetch the demo's base model

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'fedethos needs Python 3.11 or newer. Name one: make install PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'This Python has no venv module. On Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet -c constraints.txt setuptools
	$(if $(TORCH_INDEX_URL),$(PIP) install --quiet -c constraints.txt --no-deps --index-url $(TORCH_INDEX_URL) torch)
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	$(BIN)/fedethos models fetch minilm
	@touch $@

demo: $(INSTALLED) ## run the demo job: five virtual sites, differential privacy, a fairness report
	$(BIN)/fedethos demo

test: $(INSTALLED) ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(TESTS)

lint: $(INSTALLED) ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED) ## print measured ratios and write build/bench.json
	$(BIN)/python -m fedethos.simulations.bench $(if $(ONLY),--only $(ONLY))

wheel: $(INSTALLED) ## build sdist and wheel into dist/
	rm -rf build/lib build/bdist.* dist
	$(BIN)/python -m build --no-isolation

wheelhouse: wheel ## wheels of the package and all it needs, with hashes, for machines without a network
	rm -rf build/wheelhouse
	$(if $(TORCH_INDEX_URL),$(PIP) wheel --quiet -c constraints.txt --no-deps --index-url $(TORCH_INDEX_URL) -w build/wheelhouse torch)
	$(PIP) wheel --quiet -c constraints.txt --find-links build/wheelhouse -w build/wheelhouse dist/*.whl
	$(BIN)/python scripts/wheelhouse.py build/wheelhouse

image: wheelhouse ## build the image of coordinator and node from the wheelhouse
	docker build --network $(DOCKER_NETWORK) -t $(FEDETHOS_IMAGE) -f docker/Dockerfile build/wheelhouse

test-docker: ## build the image and run the compose stack through a job, with a killed site and a killed coordinator
	@docker version >/dev/null 2>&1 || { echo 'SKIPPED: no Docker engine answers (docker version).'; exit 0; }; \
	  $(MAKE) image && FEDETHOS_DOCKER=1 FEDETHOS_IMAGE=$(FEDETHOS_IMAGE) $(BIN)/python -m pytest -rs tests/docker

clean: ## remove what was built; keep .venv and runs
	rm -rf build dist fedethos.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
