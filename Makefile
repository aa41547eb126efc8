# SPDX-License-Identifier: Apache-2.0
# demo: export the demo model and talk to it.  test: everything CI checks.  lint: style, types and directions only.
PYTHON ?= python3
BIN := .venv/bin

CUDA_VERSIONS := 11.8 12.6 13.2
LEAN := 10.15.1.29-aarch64 10.16.1.11-aarch64 11.4.0.106-aarch64 10.16.1.11-x86_64 11.4.0.106-x86_64
BINDINGS := 10.16.1.11 11.4.0.106

.PHONY: demo test lint oracle kernels bench-kernels page tune tune-orin nvrtc lean bindings soak fuzz deb clean

demo: .venv/installed
	$(BIN)/orin-export build recipes/demo.yaml --target targets/host.yaml -o build/demo
	$(BIN)/orin-run selftest build/demo
	$(BIN)/orin-run generate build/demo --max-tokens 96 --temperature 0.7 --seed 7 "ROMEO:"
	$(BIN)/orin-run chat build/demo --max-tokens 120 --say "Tom has 3 apples and buys 4 more. How many apples does he have?"

test: lint nvrtc bindings
	$(BIN)/pytest -q --numprocesses auto --dist worksteal

# The long forms of the daemon's tests: 200 kills of the worker under load, 10,000 prompts side by side, cancels, and
# MIXED seconds of everything that clients do.
MIXED ?= 1800
soak: .venv/installed
	ORIN_SOAK_KILLS=200 $(BIN)/pytest -q tests/toolkit/serve/test_supervisor.py -k f23
	ORIN_SOAK=167 $(BIN)/pytest -q tests/toolkit/serve/test_soak.py
	ORIN_MIXED=$(MIXED) $(BIN)/pytest -q tests/toolkit/serve/test_mixed_load.py --log-cli-level=INFO

# Ten times as many random requests as a test run sends; FUZZ multiplies them.
FUZZ ?= 10
fuzz: .venv/installed
	ORIN_FUZZ=$(FUZZ) $(BIN)/pytest -q tests/toolkit/serve/test_fuzz.py

# The Debian package of orin-run, for boards. WHEELS: a folder of the wheels it needs, if boards have no package index.
deb: .venv/installed
	$(BIN)/python toolkit/debian/build.py $(if $(WHEELS),--wheels $(WHEELS))

# liborin_kernels for the GPUs that orinkit knows, without a CUDA toolkit.
kernels: .venv/installed build/nvrtc/13.2
	PATH=$(abspath $(BIN)):$$PATH cmake -S plugins -B build/kernels -G Ninja -DORIN_CUDA_COMPILER=build/nvrtc/13.2
	PATH=$(abspath $(BIN)):$$PATH cmake --build build/kernels

# On a machine with an NVIDIA GPU, by a Python with numpy, cuda-bindings and torch: PYTHON. GPU names the files.
GPU ?= h200
ON_GPU = nvidia-smi -L > /dev/null || { echo "$@: expected an NVIDIA GPU and its driver; run it on a machine with one"; exit 1; }

# Every kernel's bench, then the page of figures.
bench-kernels:
	@$(ON_GPU)
	set -e; for bench in bench/kernels/bench_*.py; do name=$${bench##*/bench_}; \
	  PYTHONPATH=toolkit:tests $(PYTHON) $$bench --out bench/results/$${name%.py}-$(GPU).json; done
	$(MAKE) page

# docs/kernels.md and its picture from the H200's results.
page: .venv/installed
	PYTHONPATH=toolkit $(BIN)/python bench/kernels_page.py

# The INT4 GEMM's table of choices: measured on this machine's GPU, or for Orin by reasoning. Then: make kernels.
tune:
	@$(ON_GPU)
	PYTHONPATH=toolkit:tests $(PYTHON) bench/kernels/tune_int4_gemm.py

tune-orin: .venv/installed
	PYTHONPATH=toolkit:tests $(BIN)/python bench/kernels/tune_orin.py

nvrtc: $(CUDA_VERSIONS:%=build/nvrtc/%)

# Wheels of several CUDA releases overwrite each other in one environment, so each gets a folder of its own.
build/nvrtc/%: cmake/nvrtc/%.txt | .venv/installed
	rm -rf $@
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $@ --requirement $<
	touch $@

# TensorRT's lean runtimes, for the tests of the plugin library that have TensorRT's headers (orin-export sdk).
lean: $(LEAN:%=build/lean/%)

LEAN_PLATFORM_aarch64 := manylinux_2_35_aarch64
LEAN_PLATFORM_x86_64 := manylinux_2_28_x86_64

build/lean/%: | .venv/installed
	rm -rf $@
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --target $@ \
	  --platform $(LEAN_PLATFORM_$(lastword $(subst -, ,$*))) tensorrt-lean-cu13-libs==$(firstword $(subst -, ,$*))
	touch $@

# TensorRT's Python bindings without TensorRT, for the test that compares our use of them with what they have.
bindings: $(BINDINGS:%=build/bindings/%)

build/bindings/%: | .venv/installed
	rm -rf $@
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --target $@ \
	  tensorrt-cu13-bindings==$* || echo "$@: none for this Python; the tests that need it say so"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find plugins -name '*.cu*' -o -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy
	$(BIN)/lint-imports

# Needs torch and transformers (see tests/oracle/requirements.txt): makes the committed fixtures again and compares live.
oracle: .venv/oracle
	$(BIN)/python tests/oracle/make_fixtures.py

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

.venv/oracle: .venv/installed tests/oracle/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement tests/oracle/requirements.txt
	touch $@

clean:
	rm -rf .venv build
