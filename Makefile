VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
DEMO := models/demo
CLIENTS := tests/clients/node_modules/.installed

export PYTHONUNBUFFERED = 1

.PHONY: run test test-clients check fuzz bench gpu-kit clean

# One real edit of test_input.json through handler.py, on whatever this machine has.
run: $(DEMO)/manifest.json
	@MODEL_CACHE_DIR=$(DEMO) QWEN_EDIT_SAVE_DIR=outputs RUNPOD_LOG_LEVEL=WARN $(PYTHON) handler.py
	@echo "The edited picture: $$(ls -t outputs/* | head -n 1)"

# Two processes of one thread each: much of the suite waits for programs that it started.
test: $(INSTALLED)
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile
	@echo "Left out: tests/clients (clients in Node, LiteLLM, the page in a browser), which make test-clients runs."

# The clients that pip alone does not bring. It installs them, and as root also Node and Chromium where they are missing.
test-clients: $(CLIENTS)
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m clients tests/clients

check: $(INSTALLED)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

# 20,000 arbitrary inputs at the handler, about three minutes; the tests run a few hundred.
fuzz: $(INSTALLED)
	@HYPOTHESIS_PROFILE=soak $(PYTHON) -m pytest tests/serving/test_fuzz_handler.py

# Every benchmark that a CPU can run: more than an hour on two cores. `bench.gpu` wants a GPU.
bench: $(INSTALLED)
	@$(PYTHON) -m bench.gpu.memory
	@$(PYTHON) -m bench.predict
	@$(PYTHON) -m bench.gpu.activations
	@$(PYTHON) -m bench.gpu.traffic
	@$(PYTHON) -m bench.gpu.fp8
	@$(PYTHON) -m bench.gpu.vision --clock work
	@$(PYTHON) -m bench.demo
	@$(PYTHON) -m bench.bake
	@$(PYTHON) -m bench.start.imports
	@$(PYTHON) -m bench.start.cold_start
	@$(PYTHON) -m bench.start.reading
	@$(PYTHON) -m bench.loop idle
	@$(PYTHON) -m bench.loop queue
	@$(PYTHON) -m bench.loop soak
	@$(PYTHON) -m bench.loop chaos
	@$(PYTHON) -m bench.http

# An archive for a machine with a GPU and without a network, and the commands to run there. Downloads 24 MB of wheels.
gpu-kit: $(INSTALLED)
	@$(PYTHON) -m bench.kit

$(INSTALLED): pyproject.toml
	@test -x $(PYTHON) || python3 -m venv $(VENV)
	@# PyTorch by itself first: on a machine that offers a CPU build, plain pip finds it only when asked directly.
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check "torch>=2.10,<2.14"
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

$(CLIENTS): $(INSTALLED) $(addprefix tests/clients/,install.sh package-lock.json requirements.txt)
	@tests/clients/install.sh $(PYTHON)
	@touch $@

$(DEMO)/manifest.json: $(INSTALLED) builder/made/demo/files.py $(shell find builder/made/demo/model -type f)
	@$(PYTHON) -m builder demo --models $(DEMO)

.PHONY: image-check production-check lock

# The Dockerfile for real, in its tiny profile, and the image run with the network cut. Needs root, buildah, debootstrap.
image-check:
	@python3 deploy/image_check.py

# The packages of the production image, installed and tried, without a GPU. Downloads 3.6 GB, takes 12 below build/.
production-check:
	@python3.11 deploy/production_check.py

# New versions for the image: `make lock`. `make lock LOCK=bake` for the packages below its weights.
lock:
	@python3 -m venv build/lock
	@build/lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	@PATH="$(CURDIR)/build/lock/bin:$$PATH" build/lock/bin/python requirements/lock.py $(LOCK)

clean:
	rm -rf $(VENV) $(DEMO) outputs build
