# `make help` lists the targets. Everything runs from .venv, which `make setup` creates from the lock files.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
.DEFAULT_GOAL := help
.PHONY: help setup demo submit cluster cluster-down images e2e e2e-full test coverage test-gpu fuzz chaos bench bench-gpu check \
  format docs docs-site lock clean

help:  ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## Create .venv with all dependencies and tools

$(STAMP): locks/dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'Installing torch and all other packages into $(VENV): 6 GB, a few minutes ...'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r locks/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: setup  ## Run a whole job on this machine: S3 server, small model, two CPU processes
	$(BIN)/python -m cpmbee_job.demo

submit: setup  ## Submit JOB=job.yaml to the cluster of the kubeconfig (ARGS="--follow --set key=value")
	@test -n '$(JOB)' || { echo 'make submit JOB=job.yaml [ARGS=...]' >&2; exit 2; }
	@$(BIN)/cpmbee-job submit '$(JOB)' $(ARGS)

cluster: setup  ## Start a one-node Kubernetes cluster on this machine (root on Debian; see docs/how-to/test-cluster.md)
	$(BIN)/python -m tests.cluster up

cluster-down: setup  ## Remove that cluster; its programs stay in the cache
	$(BIN)/python -m tests.cluster down

images: setup  ## Build both images and load them into that cluster; layers stay in the cache
	$(BIN)/python -m tests.cluster.images

# On the cluster that KUBECONFIG names, or else on one that is started on this machine.
define E2E
	@set -e; if [ -z "$$KUBECONFIG" ]; then \
	  settings=$$($(BIN)/python -m tests.cluster up); eval "$$settings"; $(BIN)/python -m tests.cluster.images; fi; \
	set -x; $(BIN)/pytest tests/cluster -m
endef

e2e: setup  ## Test on a real cluster: submit, follow, fetch, cancel, resume (see docs/how-to/test-cluster.md)
	$(E2E) e2e

e2e-full: setup  ## The same, and failures: images, quotas, memory, credentials, killed pods
	$(E2E) 'e2e or e2e_full'

# One worker for each core takes whole files, so that fixtures shared by a file are made once.
WORKERS ?= auto
PARALLEL := -n $(WORKERS) --maxprocesses=8 --dist=loadfile --no-loadscope-reorder

test: setup  ## Run the tests in parallel (WORKERS=2; CPMBEE_REFERENCE=folder adds comparisons with the original)
	$(BIN)/pytest $(PARALLEL) $(ARGS)

coverage: setup  ## Run the tests and report line and branch coverage, subprocesses included
	mkdir -p build
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PARALLEL) $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
	@$(BIN)/coverage json --quiet -o build/coverage.json
	@$(BIN)/python -c 'import json; of = json.load(open("build/coverage.json"))["totals"]; \
	  print("lines {percent_statements_covered:.2f} %, branches {percent_branches_covered:.2f} %".format(**of))'

fuzz: setup  ## Search for inputs that break the readers (FUZZ_EXAMPLES=2000 of each kind)
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-2000} $(BIN)/pytest tests/fuzz --timeout=0

chaos: setup  ## Train one run under random faults and report losses (CHAOS_FAULTS=60 CHAOS_SEED=...; see docs/explanation/reliability.md)
	@$(BIN)/python -m tests.chaos $(ARGS)

# The Python to use, with its torch. Default: .venv; or python3, if it has torch and there is no .venv. Packages that
# another Python than .venv's is missing are installed into .venv-gpu.
GPU_PYTHON ?= $(or $(wildcard $(BIN)/python),$(shell python3 -c 'from importlib.util import find_spec as find; \
  print("python3" if find("torch") else "")' 2>/dev/null),$(BIN)/python)
GPU_SETUP := $(if $(filter $(BIN)/python,$(GPU_PYTHON)),setup)
define GPU
@set -e; python='$(GPU_PYTHON)'; $(if $(GPU_SETUP),,python=$$("$$python" tests/gpu/environment.py);) set -x; "$$python" -m
endef

test-gpu: $(GPU_SETUP)  ## Run the tests that require a GPU (CPMBEE_TEST_DEVICE=cpu: rehearse on the CPU; see docs/how-to/gpus.md)
	$(GPU) pytest tests/gpu -m gpu

bench-gpu: $(GPU_SETUP)  ## Measure steps on a GPU (ARGS=--rehearse: rehearse on the CPU)
	$(GPU) benchmarks.gpu $(ARGS)

bench: setup  ## Measure speed and memory against baselines (BENCH_QUICK=1: in 2 minutes; see docs/explanation/performance.md)
	@$(BIN)/python -m benchmarks

check: setup  ## Format, lint, types, import rules, generated files, language, documentation site
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check
	$(BIN)/python docs/language.py
	$(BIN)/codespell
	$(SITE)

format: setup  ## Format the code and apply the linter's fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup  ## Generate the generated files of docs/, k8s/ and helm/
	$(BIN)/python docs/generate.py

SITE = $(BIN)/sphinx-build --fail-on-warning --nitpicky --keep-going --fresh-env --quiet docs build/site

docs-site: setup  ## Build the documentation as a site, build/site/index.html
	$(SITE)

lock: setup  ## Resolve pyproject.toml into new lock files
	for target in launcher: train:--extra=train,--extra=gpu dev:--extra=train,--extra=gpu,--extra=s3-server,--extra=dev; do \
	  $(BIN)/uv pip compile pyproject.toml $$(echo $${target#*:} | tr , ' ') --upgrade --quiet \
	    --override locks/overrides.txt --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-header --no-annotate --output-file locks/$${target%%:*}.txt || exit 1; \
	done

clean:  ## Remove everything that was built, including .venv
	rm -rf $(VENV) $(VENV)-gpu .demo build dist *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
