# Set-up and checks. Everything is installed into $(VENV); nothing else on the machine is touched.
#
#   make demo     find anomalies in made-up head scans with the detector that ships in the package
#   make test     lint, types, tests, documentation
#   make bench    time the CPU engines beside PyTorch (a quarter of an hour, two cores)
#   make bench-gpu    the same on an NVIDIA GPU, with every engine that can be installed
#   make pretrained   train the detector that ships in the package anew (under an hour, one core)
#   make test-offline    the tests of what runs a detector, with networking cut
#   make sbom     write build/sbom.cdx.json: of what an installation on a scanner consists
#   make clean    remove what make made
#
# PYTHON    the interpreter that makes the environment (3.10 or newer)
# PIP_ARGS  handed to pip as it is, for example the package index or wheel folder to use
# EXTRAS    what that installation has besides the ground floor, separated by commas
# JOBS      how many tests run at once
# ARGS      handed to pytest, to `berdiff demo` or to benchmarks/engines.py

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
EXTRAS ?= cpu
JOBS ?= 2
ARGS ?=

# A test that makes an environment of its own installs with the same arguments.
export PIP_ARGS

BIN := $(VENV)/bin
# Without --compile pip takes a minute less: Python compiles what is used when it is first imported.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-compile \
    --constraint constraints.txt $(PIP_ARGS)
DEMO_READY := $(VENV)/.ready-demo
DEV_READY := $(VENV)/.ready-dev
# Of its own, since onnxruntime and onnxruntime-gpu provide the same module.
GPU_VENV ?= .venv-gpu
GPU_READY := $(GPU_VENV)/.ready
GPU_INSTALL = $(GPU_VENV)/bin/python -m pip install --disable-pip-version-check --no-compile \
    --constraint $(GPU_VENV)/constraints.txt $(PIP_ARGS)

.PHONY: demo bench bench-gpu pretrained test lint format types pytest test-offline docs sbom clean
.DEFAULT_GOAL := test

demo: $(DEMO_READY)
	rm -rf berdiff-demo
	$(BIN)/berdiff demo $(ARGS)

bench: $(DEMO_READY)
	$(BIN)/python benchmarks/engines.py --device cpu $(ARGS)

bench-gpu: $(GPU_READY)
	$(GPU_VENV)/bin/python benchmarks/engines.py --device cuda:0 $(ARGS)

# The recipe of berdiff/pretrained/phantom.
pretrained: $(DEMO_READY)
	$(BIN)/berdiff phantoms -o build/heads --count 3000 --seed 1 --healthy
	$(BIN)/berdiff train all -i build/heads/images -o build/phantom --preset phantom --half --threads 1
	rm -rf berdiff/pretrained/phantom
	cp -r build/phantom/checkpoint berdiff/pretrained/phantom

# Two at once, and what each says in one piece where make can do that.
test: $(DEV_READY)
	@$(MAKE) --no-print-directory --jobs=2 \
	    $(addprefix --,$(filter output-sync,$(.FEATURES))) lint docs types
	@$(MAKE) --no-print-directory pytest

# PyTorch with CUDA names its own versions of NVIDIA's libraries. TensorRT's wheels fetch theirs from
# NVIDIA at installation: where that fails, the benchmark says so and goes on without it.
$(GPU_READY): pyproject.toml constraints.txt | $(BIN)/python
	$(PYTHON) -m venv $(GPU_VENV)
	grep -v '^nvidia-' constraints.txt > $(GPU_VENV)/constraints.txt
	$(GPU_INSTALL) --editable '.[gpu,rtx,export,report]' 'onnxruntime-gpu[cuda,cudnn]'
	-$(GPU_INSTALL) --editable '.[tensorrt]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("berdiff needs Python 3.10 or newer; this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12") if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)

# A stamp is older than these files when they changed after the installation.
$(DEMO_READY): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[cpu,export,train,report]'
	@touch $@

$(DEV_READY): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[dev]'
	@touch $@

lint: $(DEV_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV_READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Tools that read folders find one package only where it is installed: the folders are mapped there.
build/installed: $(DEV_READY) $(shell find berdiff runtime export cli -name '*.py')
	rm -rf build
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-compile \
	    --no-build-isolation --target $@ .

types: build/installed
	cd $< && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml \
	    --cache-dir ../../.mypy_cache --package berdiff

pytest: $(DEV_READY)
	$(BIN)/pytest --numprocesses $(JOBS) $(ARGS)

# Everything but loopback is gone: who asks for the network fails. Not the clusters, whose tests are
# about a network, nor two tests that install or download packages themselves.
test-offline: $(DEV_READY)
	unshare --map-root-user --net sh -c 'ip link set lo up && exec "$$@"' sh \
	    $(BIN)/pytest --numprocesses $(JOBS) tests/runtime $(ARGS) \
	    --ignore tests/runtime/cluster --ignore tests/runtime/engines/test_tensorrt_names.py \
	    --deselect tests/runtime/test_system.py::test_info_on_a_bare_installation

# From a clean environment, as on a scanner. The tool wants a version that can be read without
# building; paths of this machine do not get into it that way either.
sbom: $(DEV_READY)
	rm -rf build/sbom build/lib
	mkdir -p build/sbom
	$(PYTHON) -m venv --without-pip build/sbom/environment
	$(BIN)/python -m pip --python build/sbom/environment/bin/python install \
	    --disable-pip-version-check --quiet --no-compile --constraint constraints.txt \
	    $(PIP_ARGS) '.[$(EXTRAS)]'
	version=$$(build/sbom/environment/bin/python -I -c 'import berdiff; print(berdiff.__version__)') \
	    && sed "s/^dynamic = .*/version = \"$$version\"/" pyproject.toml > build/sbom/pyproject.toml
	$(BIN)/cyclonedx-py environment --validate --pyproject build/sbom/pyproject.toml \
	    --output-file build/sbom.cdx.json build/sbom/environment/bin/python
	@echo "wrote build/sbom.cdx.json"

# Broken links and anchors stop the build. Not --quiet: it would also stop --strict from seeing them.
docs: export NO_MKDOCS_2_WARNING = 1
docs: build/installed
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(GPU_VENV) berdiff-demo build dist site berdiff.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
