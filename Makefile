# elalora: `make` shows what there is.
# PYTHON makes the environment (3.11 or newer), VENV is its folder, STORE the run store, TABLES where reports go,
# SITE where the pages go.
PYTHON ?= python3
VENV   ?= .venv
STORE  ?= runs
TABLES ?= tables
SITE   ?= site
DEMO   ?= method=elalora,lora budget=r4 seed=0,1
PYTEST ?= -n 2 --dist loadgroup --durations=15
BENCH  ?= --quick

run := HF_HUB_OFFLINE=1 "$(VENV)/bin/python"

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-full smoke reproduce-check notebooks docs lint tables bench clean

help: ## this list
	@printf '\nelalora: ElaLoRA and other adaptive-rank methods against LoRA, at the same budget\n\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile
	@printf '\nOne run: %s/bin/python run.py --help\n\n' "$(VENV)"

setup: ## make .venv from requirements.lock (about 2 minutes, once)
	@"$(PYTHON)" experiments/tools/setup_env.py --venv "$(VENV)"

demo: setup ## ElaLoRA against LoRA on real text, 2 seeds, with a table and figures (about 6 minutes)
	@$(run) run.py -m $(DEMO) 'store.root="$(STORE)"'
	@$(run) -m analysis "$(STORE)" --out "$(TABLES)"

test: setup ## the quick tests (at most 6 minutes on 2 cores)
	@$(run) -m pytest $(PYTEST)

test-slow: setup ## the tests that take seconds each: pairs of processes, sweeps, kills, notebooks, wheels, the site
	@$(run) -m pytest $(PYTEST) -m "slow and not full"

test-full: setup ## all tests, those of minutes to hours too
	@$(run) -m pytest $(PYTEST) -m "slow or not slow"

smoke: setup ## every benchmark at hand with every method, 60 steps each (needs ../shared/data; about 18 minutes)
	@$(run) -m pytest $(PYTEST) -m "slow or not slow" tests/experiments/standins/test_smoke.py

reproduce-check: setup ## LoRA, AdaLoRA and ElaLoRA on DeBERTa against stated ranges (hub and GPU; WORDS=study.smoke=true anywhere)
	@"$(VENV)/bin/python" -m experiments.reproduce_check $(WORDS)

notebooks: setup ## the notebooks of analysis/notebooks, executed on a small made-up store
	@$(run) -m experiments.standins.study "$(TABLES)/made_up_store"
	@$(run) -m analysis.notebooks "$(TABLES)/made_up_store" --out "$(TABLES)/notebooks"

docs: setup ## the pages of docs/ as a site, every link checked: SITE=site
	@NO_MKDOCS_2_WARNING=1 $(run) -m mkdocs build --strict --site-dir "$(abspath $(SITE))"
	@echo "Written: $(SITE)/index.html"

lint: setup ## ruff and mypy
	@$(run) -m ruff check .
	@$(run) -m ruff format --check --quiet .
	@$(run) -m mypy

tables: setup ## tables and figures of the stored runs again
	@$(run) -m analysis "$(STORE)" --out "$(TABLES)"

bench: setup ## steps of all methods and of stock PEFT side by side (BENCH="--shape minilm --length 64")
	@$(run) -W ignore -m experiments.bench $(BENCH)

clean: ## remove the environment and caches; runs and tables stay
	rm -rf "$(VENV)" site build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
