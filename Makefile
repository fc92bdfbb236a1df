# Two commands for newcomers: `make demo` and `make test`. Both set up .venv on first use.
PYTHON ?= python3
VENV ?= .venv
REFERENCE ?= .venv-reference
TRITON ?= .venv-triton
RAY ?= .venv-ray
# Extra words for pip, for example an index that has torch's CPU build.
PIP_FLAGS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-gpu test-triton test-ray test-runtimes lint format docs parity bench train image-check clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

$(READY): pyproject.toml constraints.txt
	@echo "== setting up $(VENV) (first use takes some minutes: torch, onnx, onnxruntime)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar on $(PIP_FLAGS) -c constraints.txt -e ".[dev]"
	@touch $@

setup: $(READY)  ## create .venv with everything for development

demo: $(READY)  ## export, serve, send the real sample, draw the picture
	$(BIN)/python -m examples.demo

# Processes that run tests, one more than cores, since tests wait for servers and for models that another one exports;
# each has what it computes and compiles with torch in one thread.
JOBS ?= $(shell expr $$(nproc 2>/dev/null || echo 2) + 1)
test: $(READY)  ## run every test
	@$(BIN)/python -m compileall -q yolo_loss models audit export serve  # servers start often, where nothing is written, too
	OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 4 --dist worksteal

# No addopts: with --strict-config pytest ends where pytest-timeout is missing.
test-gpu: $(READY)  ## run the tests that need a GPU
	$(BIN)/python -m pytest -o addopts= -m gpu -rs -W default tests/gpu

# Makes the environment of the target, whose words for pip are $(1), on top of $(VENV), also of its pip: torch is not
# installed twice.
define on_top
	$(BIN)/python -m venv --without-pip $(@D)
	$(@D)/bin/python -c "import pathlib, site, sys; \
		pathlib.Path(site.getsitepackages()[0], 'base.pth').write_text(sys.argv[1])" \
		"$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')"
	$(@D)/bin/python -m pip install --progress-bar on $(PIP_FLAGS) -c constraints.txt $(1)
	@touch $@
endef

$(TRITON)/.ready: tests/requirements-triton.txt $(READY)
	@echo "== setting up $(TRITON) (Triton and its interpreter)"
	$(call on_top,-r tests/requirements-triton.txt)

test-triton: $(TRITON)/.ready  ## run the Triton kernels in Triton's interpreter, and compile them
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(TRITON)/bin/python -m pytest -n $(JOBS) --maxprocesses 4 --dist worksteal \
		tests/yolo_loss/triton

# Not in $(VENV): Ray brings fifty packages. A comma between its extras would end the words.
$(RAY)/.ready: constraints.txt $(READY)
	@echo "== setting up $(RAY) (Ray)"
	$(call on_top,"ray[data]" "ray[serve]")

test-ray: $(RAY)/.ready  ## run the service and whole data sets on a Ray cluster of this machine
	OMP_NUM_THREADS=1 $(RAY)/bin/python -m pytest tests/serve/cluster tests/audit/test_ray_data.py

# Of `python -m tests.runtimes`: all runtimes and kinds, and no page, unless named.
RUNTIMES ?=
KINDS ?=
TABLE ?=
test-runtimes: $(READY)  ## run the exported models in other runtimes
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.runtimes $(if $(RUNTIMES),--runtimes $(RUNTIMES)) \
		$(if $(KINDS),--kinds $(KINDS)) $(if $(TABLE),--table $(TABLE))

lint: $(READY)  ## linters and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## build the documentation into out/docs; a dead link ends it
	$(BIN)/python -m zensical build --strict --clean

$(REFERENCE)/.ready: benchmarks/requirements-reference.txt pyproject.toml constraints.txt
	@echo "== setting up $(REFERENCE) (the AGPL-3.0 reference, to measure against)"
	$(PYTHON) -m venv $(REFERENCE)
	$(REFERENCE)/bin/python -m pip install --progress-bar on $(PIP_FLAGS) -c constraints.txt \
		-r benchmarks/requirements-reference.txt -e ".[audit,cpu,export]" matplotlib pytest pytest-timeout
	@touch $@

parity: $(REFERENCE)/.ready  ## differences from the reference
	YOLO_OFFLINE=true YOLO_AUTOINSTALL=false $(REFERENCE)/bin/python -m pytest -W default tests/integrations
	$(REFERENCE)/bin/python -W ignore -m benchmarks.parity

bench: $(REFERENCE)/.ready  ## time and memory beside the reference
	$(REFERENCE)/bin/python -W ignore -m benchmarks.bench

train: $(READY)  ## train the n detector on the two sample pictures
	$(BIN)/python -m examples.train_detector

TARGET ?= cpu
image-check: $(READY)  ## build the container image and check it; needs root
	$(BIN)/python -m deploy.image_check --target $(TARGET)

clean:  ## remove what was built, keep .venv
	rm -rf artifacts out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
