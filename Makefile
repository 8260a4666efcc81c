# `make` prints what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
AUDIO_READY := $(VENV)/.ready-audio
BENCH := .venv-bench
BENCH_READY := $(BENCH)/.ready
DOCS_ENV := .venv-docs
DOCS_READY := $(DOCS_ENV)/.ready
UV := $(BIN)/uv --system-certs
UV_VERSION := 0.13.9
LOCK = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help demo demo-audio test test-peers test-browser test-schedulers docs chaos-quick chaos chaos-report guarantees mutation bench bench-quick check format lint types floors
.PHONY: lock audit clean

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(READY): requirements.lock pyproject.toml
	@echo "making the environment in $(VENV): a minute or more"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $(READY)

demo: $(READY) ## create the environment, embed the sample passages through the simulator, search them
	@$(BIN)/pipeline run jobs/embed_passages.yaml --simulate --fresh
	@$(BIN)/pipeline run jobs/embed_questions.yaml --simulate --fresh
	@$(BIN)/python sample_data/nearest.py out/embed-passages.simulated out/embed-questions.simulated
	@echo "to go on by hand: . $(BIN)/activate"

$(AUDIO_READY): $(READY) requirements-audio.lock
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements-audio.lock
	@touch $(AUDIO_READY)

demo-audio: $(AUDIO_READY) ## speak texts, transcribe real recordings with Whisper in the simulator, print the word error rate
	@$(BIN)/pipeline run jobs/speak_sentences.yaml --simulate --simulate-speed 60 --fresh
	@$(BIN)/pipeline run jobs/transcribe_recordings.yaml --simulate --simulate-speed 60 --fresh
	@$(BIN)/python sample_data/word_error_rate.py out/transcribe-recordings.simulated

# Hundreds of commands are started: with this set, each would compile all modules anew (empty means unset).
# Tests wait for disks, clocks and other processes for half of their time, so there are two for each of two cores.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(READY) ## run the tests: unit, contract, golden, integration, cli, security, kills at their quick counts
	@$(BIN)/python -m pytest --numprocesses 4 --dist worksteal -rs -m "not chaos and not peer and not browser and not scheduler"

PEERS := tests/peers/node_modules/.package-lock.json
$(PEERS): tests/peers/package-lock.json
	@npm ci --prefix tests/peers --ignore-scripts --no-audit --no-fund --silent
	@touch $(PEERS)

test-peers: $(READY) $(PEERS) ## run the tests against servers that others wrote; they need Node.js 20 and npm
	@$(BIN)/python -m pytest --numprocesses 0 -rs -m peer tests/peers

test-schedulers: $(READY) ## let the real cron and systemd-analyze judge what pipeline schedule prints (skipped without them)
	@$(BIN)/python -m pytest --numprocesses 0 -rs -m scheduler tests/schedulers

test-browser: $(READY) ## look at the report in chromium, in both themes and at two widths (skipped without chromium)
	@$(BIN)/python -m pytest --numprocesses 0 -rs -m browser tests/browser

# Lines of the fault report; classes that a report must hold, or say why the machine cannot try them.
FAULTS := out/faults
NEEDED := F1,F2,F3,F4,F5,F6,F7,F8,F9,F10,F11,F12,F13,F14,F15,F16,F17,F19,F21,F22,F23
# The full counts of tests that read variables of their own; the others read PIPELINE_CHAOS.
FULL := PIPELINE_CHAOS=full PIPELINE_BROKEN_REPLIES=500 PIPELINE_TRANSIENT_ROWS=50000 PIPELINE_POISON=20000 \
	PIPELINE_STORM=100000 PIPELINE_SOAK_ROWS=1000000
SEED ?= 20
# $(call faults,LINES,PYTEST OPTIONS,REPORT OPTIONS): run the fault tests, then the report; either may fail it.
faults = mkdir -p $(FAULTS); rm -f $(1); echo "seed $(SEED)"; status=0; \
	PIPELINE_FAULT_REPORT=$(CURDIR)/$(1) PIPELINE_SEED=$(SEED) \
	$(BIN)/python -m pytest tests/chaos tests/security/test_bombs.py --numprocesses 4 --dist worksteal -rs $(2) || status=1; \
	$(BIN)/python tests/chaos/report.py $(1) --need $(or $(FAULT),$(NEEDED)) $(3) || status=1; exit $$status

chaos-quick: $(READY) ## try the faults that make test leaves out, at their quick counts: FAULT=F4,F5 for some, SEED=… replays
	@export PIPELINE_FAULT=$(FAULT); \
		$(call faults,$(FAULTS)/quick.jsonl,-m chaos,--title "Fault matrix at its quick counts")

chaos: $(READY) ## try all faults at their full counts: FAULT=F4 for one, SEED=… replays; chaos-report writes it down
	@export $(FULL) PIPELINE_FAULT=$(FAULT); $(if $(FAULT),,rm -f $(FAULTS)/full*;) \
		$(call faults,$(FAULTS)/full$(addprefix -,$(FAULT)).jsonl,,)

chaos-report: $(READY) ## print the fault matrix of what make chaos last found: REPORT=docs/fault-matrix.md writes it there
	@$(BIN)/python tests/chaos/report.py $(wildcard $(FAULTS)/full.jsonl $(FAULTS)/full-*.jsonl) $(if $(REPORT),--markdown $(REPORT))

guarantees: $(READY) ## break each guarantee by one line, in a copy, and see its tests fail: ONLY=G7 for one
	@PYTHONPATH=tests $(BIN)/python -m mutants.run --only "$(ONLY)"

mutation: $(READY) ## change pacing, classification and journal a little, many times: do their unit tests notice? ONLY=retry
	@PYTHONPATH=tests $(BIN)/python -m mutation.run --seed $(SEED) --count $(or $(COUNT),400) --only $(ONLY)

# The peers that are no dependencies of ours, and matplotlib: they must not change what is tested.
$(BENCH_READY): $(READY) requirements-bench.lock
	@$(PYTHON) -m venv $(BENCH)
	@$(UV) pip install --quiet --python $(BENCH)/bin/python --require-hashes -r requirements-bench.lock
	@touch $(BENCH_READY)

bench: $(READY) $(BENCH_READY) ## measure rows beside other clients, the wire and the use of quotas; DOCS=1 writes docs/performance.md
	@$(BIN)/python benchmarks/peers.py --peers-python $(BENCH)/bin/python --json out/bench/peers.json \
		$(if $(DOCS),--docs docs/performance.md --plot docs/performance.svg,--plot out/bench/peers.svg)
	@$(BIN)/python benchmarks/size.py --rows 200000 --input jsonl --floats 1536 --json out/bench/packs.json
	@$(BIN)/python benchmarks/row.py --json out/bench/row.json
	@$(BIN)/python benchmarks/wire.py --json out/bench/wire.json
	@$(BIN)/python benchmarks/wire.py --tls --json out/bench/tls.json
	@$(BIN)/python benchmarks/fairness.py
	@$(BIN)/python benchmarks/size.py --json out/bench/size.json
	@$(BIN)/python benchmarks/quota.py
	@$(BIN)/python benchmarks/plan_accuracy.py

bench-quick: $(READY) ## measure rows beside other clients once, at 100 in flight, and what Python costs a row
	@$(BIN)/python benchmarks/peers.py --quick --json out/bench/quick.json
	@$(BIN)/python benchmarks/row.py --rows 5000

# What builds the site, and what the cookbook loads results into: they must not change what is tested.
$(DOCS_READY): $(READY) requirements-docs.lock
	@$(PYTHON) -m venv $(DOCS_ENV)
	@$(UV) pip install --quiet --python $(DOCS_ENV)/bin/python --require-hashes -r requirements-docs.lock
	@touch $(DOCS_READY)

docs: $(DOCS_READY) ## build the documentation as a site, out/site, and run what the cookbook does with results
	@NO_MKDOCS_2_WARNING=1 PYTHONPATH=$(CURDIR) $(DOCS_ENV)/bin/mkdocs build --quiet --config-file docs/site/mkdocs.yml
	@rm -rf out/cookbook
	@$(BIN)/python tests/docs/results.py write out/cookbook
	@$(DOCS_ENV)/bin/python tests/docs/results.py read out/cookbook >/dev/null
	@echo "out/site/index.html"

check: format lint types floors test ## everything that must pass before a commit

format: $(READY) ## check the formatting
	@$(BIN)/ruff format --check .

lint: $(READY) ## check the style
	@$(BIN)/ruff check .

types: $(READY) ## check the types
	@$(BIN)/mypy

floors: $(READY) ## check that each floor imports only from lower floors
	@$(BIN)/lint-imports

audit: $(READY) ## look the locked packages up in the advisory database: every one, or fail (needs a network)
	@$(BIN)/pip-audit --strict --require-hashes --disable-pip --timeout 15 -r requirements.lock

lock: $(READY) ## pin every package anew, with hashes
	@$(LOCK) --extra dev --extra demo --extra audio --extra otel -o requirements.lock
	@$(LOCK) --extra demo-audio -c requirements.lock -o requirements-audio.lock
	@$(LOCK) --extra bench -o requirements-bench.lock
	@$(LOCK) --extra docs -c requirements.lock -o requirements-docs.lock

clean: ## remove the environment and what was run
	@rm -rf $(VENV) $(BENCH) $(DOCS_ENV) out
