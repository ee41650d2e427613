# The two commands: `make demo` and `make test`. Nothing but Python (3.11 to 3.13) and make is needed.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null || echo $(CURDIR)/$(BIN)/uv)
# Tests that share one machine: two workers keep two cores busy.
WORKERS ?= 2
# Of `make chaos`: each orders the faults in its own way.
SEEDS ?= 1,2,3,4,5,6,7,8,9,10
# The machine's trust store, where a team's own certificate authority is.
export UV_SYSTEM_CERTS ?= 1

.PHONY: help demo up test chaos fuzz lint fmt proto dashboards bench clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(BIN)/uv:
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'

# Each environment is made once for a lock; `--inexact` lets the larger one serve the smaller.
.venv/.local: pyproject.toml uv.lock
	@command -v uv >/dev/null || $(MAKE) --no-print-directory $(BIN)/uv
	@$(UV) sync --quiet --frozen --inexact --extra local
	@touch $@

.venv/.dev: pyproject.toml uv.lock
	@command -v uv >/dev/null || $(MAKE) --no-print-directory $(BIN)/uv
	@$(UV) sync --quiet --frozen --inexact --extra dev
	@touch $@ .venv/.local

demo: ## Train, build, assign and serve a real model here, from nothing (KEEP=1 leaves it up, WORKFLOW=1 runs a workflow)
	@started=$$(date +%s.%N); $(MAKE) --no-print-directory .venv/.local && \
	  DEMO_STARTED=$$started $(BIN)/python -m vyvo_dagster.demo $(if $(KEEP),--keep) $(if $(WORKFLOW),--workflow) $(DEMO_ARGS)

up: .venv/.local ## Start the whole stack and stay in the foreground (UP_ARGS="--port 8080 ...")
	@$(BIN)/vyvo up $(UP_ARGS)

test: .venv/.dev ## Run all tests
	@$(BIN)/pytest -n $(WORKERS) --dist loadgroup

chaos: .venv/.dev ## Kill -9 each part in turn under load, by ten seeds (SEEDS=7,8 for others; minutes)
	@VYVO_CHAOS_SEEDS=$(SEEDS) $(BIN)/pytest -s tests/chaos

fuzz: .venv/.dev ## Send what the OpenAPI document allows and forbids to a running stack (URL=..., KEY=... or none; minutes)
	@$(BIN)/st run $(or $(URL),http://127.0.0.1:8080)/openapi.json $(if $(KEY),-H "Authorization: Bearer $(KEY)") \
	  --phases examples,coverage,fuzzing --max-examples $(or $(EXAMPLES),50) --exclude-path /api/events \
	  --checks not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance \
	  --request-timeout 90 --suppress-health-check all --continue-on-failure --warnings off

lint: .venv/.dev ## Check style, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/basedpyright
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code
	@$(BIN)/lint-imports
	@$(BIN)/vyvo templates check

fmt: .venv/.dev ## Put the code into its form
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format --quiet .

proto: .venv/.dev ## Make the gRPC code from proto/
	@$(BIN)/python proto/generate.py

dashboards: .venv/.dev ## Make Grafana's dashboards from deploy/grafana/generate.py
	@$(BIN)/python deploy/grafana/generate.py

bench: .venv/.dev ## Run the benchmarks (minutes)
	@for file in benchmarks/*.py; do $(BIN)/python $$file; done

clean: ## Remove the environment and the demo's data
	@rm -rf .venv .vyvo
