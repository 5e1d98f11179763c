.DEFAULT_GOAL := help
.PHONY: help setup services collector dashboards engines demo test lint types bench docs clean

BIN := .venv/bin
ARGS ?=

help: ## show this help
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

setup: $(BIN)/.ready ## create .venv with everything locked in uv.lock

$(BIN)/.ready: pyproject.toml uv.lock scripts/setup.sh
	@scripts/setup.sh && touch $@

services: setup ## install the servers that tests talk to, where root or sudo allows it
	@scripts/services.sh

collector: ## build the slim OpenTelemetry Collector of collector/, once; needs Go; prints where it is
	@scripts/collector.sh

dashboards: setup ## write the Grafana dashboards that come from the code
	@$(BIN)/llmkg-otel dashboards build

engines: setup .venv-engines/.ready ## create .venv-engines: the knowledge engines that tests run, locked too

.venv-engines/.ready: pyproject.toml uv.lock scripts/engines.sh tests/support/neo4j/pom.xml
	@scripts/engines.sh && touch $@

demo: setup ## run the real server under load and faults, and check that the books balance
	@$(BIN)/llmkg-otel demo $(ARGS)

test: services engines ## run the whole test suite; ARGS="-k breaker" narrows it
	@$(BIN)/python -m pytest $(ARGS)

lint: setup ## ruff, on package, tests and benchmarks
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup ## mypy, strict, on package and tests
	@$(BIN)/mypy

bench: setup ## measure: ratios within one run each, see docs/benchmarks.md
	@for bench in protected_call recovery limiting overload instrumentation engine mcp_throughput startup probes; do $(BIN)/python benchmarks/$$bench.py || exit 1; done

docs: setup ## write the parts of the documentation that come from the code
	@$(BIN)/python -m llmkg_otel.telemetry.table > docs/telemetry.md

clean: ## remove what `setup` and the tools have made
	rm -rf .venv .venv-engines .uv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
