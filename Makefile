# The verbs of this project. Each sets up what it needs in .venv; nothing but Python and make has to be there before.

PYTHON ?= python3
BIN := .venv/bin
PROMPT ?= a fox moving left on a sky blue background

.PHONY: help test lint fuzz demo bench clean

help:
	@echo "make test   lint, types and tests (sets up .venv first)"
	@echo "make fuzz   2,000 random models through the compiler, half an hour on two cores"
	@echo "make demo   a video from the packaged model, by the preset turbo and dense, in out/"
	@echo "make bench  carved against dense attention on this machine's CPU"
	@echo "make clean  remove .venv, caches and out/"

test: .venv/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

lint: .venv/ready-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

fuzz: .venv/ready-test
	$(BIN)/python -m tests.fuzz --count 2000 --seed 0 --jobs 2

demo: .venv/ready-demo
	mkdir -p out
	$(BIN)/jenga generate "$(PROMPT)" -o out/demo.mp4 --preset turbo --compare

bench: .venv/ready-test
	$(BIN)/python -m benchmarks.cpu_attention

.venv/ready-demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[diffusers]'
	touch $@

.venv/ready-test: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[diffusers,test,dev]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build out *.egg-info
