# make run    set up .venv and run the workflow on the shipped example
# make test   set up .venv and run every test that can run on this machine
# make test-training  the tests of examples/training
# make test-kernels  of them, those of the kernels in Triton: interpreted, and compiled for GPUs
# make test-models  of them, those of models that other libraries write, which it installs in .models
# make test-extras  of them, those of libraries that may be there or not, which it installs in .extras
# make test-lesser-cpus  of them, those of the CPU's instructions, as on CPUs with fewer
# make test-int8  the tests of runs, all in int8
# make test-exhaustive  those, and the tests that are too long for that: nightly and before a release
# make test-benchmarks  run the benchmarks in small, to see that they work
# make bench  compare with every other way to get ESM-2 vectors, in an environment of its own
# make bench-whole  time whole processes, packedesm and fair-esm, also as on a CPU with AVX2 alone
# make bench-micro  time attention, outputs, packer, tokeniser, sharding, collation, store and merge
# make bench-gpu  all that needs a GPU, in nine minutes, without a network; goes on where it was
# make coverage  which lines the quick tests enter, in subprocesses too
# make check  linters, formatters, spelling and types
# make architecture  draw docs/architecture.svg from the code again
# make lock   pin the newest versions that pyproject.toml admits

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH := benchmarks/.venv
# One process more than there are cores: a third of their time they wait for others.
PROCESSES := $(shell $(PYTHON) -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))')
# A file goes to one process as a whole: two would each make what its tests share.
PYTEST := $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder \
  --durations 20
# Beside the environment: it is larger than all else, and a build of torch for the CPU brings none.
TRITON := .triton
WITH_TRITON = PACKEDESM_TEST_KERNELS=1 PYTHONPATH=$(CURDIR)/$(TRITON)$${PYTHONPATH:+:$$PYTHONPATH}
# Versions of other libraries, each beside the environment in a folder of its own.
MODELS := .models
LIBRARIES := transformers-4.30 transformers-4.57 transformers-5.24 lightning
# Libraries that packedesm can use or that use its files, in the same way.
EXTRAS := .extras
USED := anndata map multiqc protspace
# Tests of runs whose number format is theirs to choose.
IN_INT8 := $(addprefix tests/,test_command_kill.py test_faults.py test_kill.py \
  $(addprefix embedding/test_,begin.py beside.py job.py masked_job.py pool.py resume.py))
KERNELS := setup.py $(wildcard src/packedesm/esm2/*.cpp)

.PHONY: run test test-most test-slurm test-lesser-cpus test-exhaustive test-benchmarks test-training coverage
.PHONY: test-models test-extras test-kernels test-kernels-interpreted test-kernels-compiled
.PHONY: test-int8 bench bench-whole bench-micro bench-wheels check architecture lock clean

run: $(READY)
	$(BIN)/snakemake --cores all --quiet rules
	@cat docs/after-run.txt

# With --jobs=2 side by side: the tests on Slurm mostly wait.
test: test-most test-slurm test-lesser-cpus test-kernels test-models test-extras

test-most: $(READY)
	$(PYTEST) -m "not slurm and not exhaustive and not benchmarks and not kernels \
	  and not models and not extras"

test-exhaustive: $(READY) test-int8
	$(PYTEST) -m exhaustive

# What is promised of a run is no matter of its number format.
test-int8: $(READY)
	PACKEDESM_TEST_DTYPE=int8 $(PYTEST) -m "not slurm and not gpu and not exhaustive" $(IN_INT8)

test-benchmarks: $(READY)
	$(PYTEST) -m benchmarks $$(grep --recursive --files-with-matches mark.benchmarks tests --include='test_*.py')

test-slurm: $(READY)
	$(BIN)/python -m pytest tests/slurm

test-training: $(READY)
	$(BIN)/python -m pytest examples/training

# What is slow, or needs a GPU or a Slurm, is left out: for finding lines that no quick test enters.
coverage: $(READY)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal \
	  -m "not slow and not gpu and not slurm and not kernels and not models \
	  and not extras"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Triton interprets its kernels or compiles them: it decides when it is imported.
ifneq ($(filter Linux-x86_64 Linux-aarch64,$(shell uname -s)-$(shell uname -m)),)
test-kernels: test-kernels-interpreted test-kernels-compiled

test-kernels-interpreted: $(TRITON)/.ready
	TRITON_INTERPRET=1 $(WITH_TRITON) $(BIN)/python -m pytest tests/esm2/test_fused_interpreted.py

test-kernels-compiled: $(TRITON)/.ready
	TRITON_CACHE_DIR=$(CURDIR)/$(TRITON)/cache $(WITH_TRITON) $(BIN)/python -m pytest tests/esm2/test_fused_compiled.py
else
test-kernels:
	@echo "There is no Triton for $(shell uname -s) on $(shell uname -m): its kernels are not tested here"
endif

$(TRITON)/.ready: $(READY) tests/requirements-kernels.txt
	rm -rf $(TRITON)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
	  --require-hashes --target $(TRITON) -r tests/requirements-kernels.txt
	@touch $@

# What a file of pinned requirements names, in the folder of the target.
define INSTALL_BESIDE
rm -rf $(@D)
$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  --require-hashes --target $(@D) -r $<
@touch $@
endef

test-models: $(LIBRARIES:%=$(MODELS)/%/.ready)
	PACKEDESM_TEST_MODELS=$(CURDIR)/$(MODELS) $(BIN)/python -m pytest tests/models

$(MODELS)/%/.ready: tests/models/requirements-%.txt $(READY)
	$(INSTALL_BESIDE)

test-extras: $(USED:%=$(EXTRAS)/%/.ready)
	PACKEDESM_TEST_EXTRAS=$(CURDIR)/$(EXTRAS) $(BIN)/python -m pytest tests/extras

$(EXTRAS)/%/.ready: tests/extras/requirements-%.txt $(READY)
	$(INSTALL_BESIDE)

test-lesser-cpus: $(READY)
	$(BIN)/python -m tests.lesser_cpus --numprocesses auto --maxprocesses 4 --dist loadscope

bench: $(BENCH)/.ready
	$(BENCH)/bin/python -m benchmarks.compare
	$(BENCH)/bin/python -m benchmarks.table

# With another Python for a machine without a network: make bench-gpu PYTHON=python3.12
.PHONY: bench-gpu
bench-gpu:
	$(PYTHON) benchmarks/gpu.py

bench-whole: $(READY)
	$(BIN)/python -m benchmarks.whole
	$(BIN)/python -m benchmarks.whole --lesser avx2

bench-micro: $(READY)
	$(BIN)/python -m benchmarks.micro

# Contenders whose needs clash have folders of their own. One that cannot be installed becomes a
# row that says so.
$(BENCH)/.ready: requirements.lock pyproject.toml $(KERNELS) $(wildcard benchmarks/requirements*.txt)
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet -r requirements.lock -r benchmarks/requirements.txt
	$(BENCH)/bin/python -m pip install --quiet --no-deps --editable .
	for name in faesm esm-cpp esm-efficient; do \
	  $(BENCH)/bin/python -m pip install --quiet --no-deps --upgrade --target $(BENCH)/$$name \
	    -r benchmarks/requirements-$$name.txt || echo "$$name cannot be installed here"; done
	@touch $@

# What bench-gpu needs on a machine that has torch and no network.
bench-wheels: $(READY)
	rm -rf benchmarks/.wheels
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
	  $(addprefix --platform=manylinux_2_,17_x86_64 24_x86_64 28_x86_64) --platform manylinux2014_x86_64 \
	  --dest benchmarks/.wheels -r benchmarks/requirements-gpu.txt
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir benchmarks/.wheels .

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint
	$(BIN)/codespell
	$(BIN)/mypy

architecture: $(READY)
	$(BIN)/python -m docs.draw_architecture

# Installed once; again only after a change of what is to be installed.
$(READY): requirements.lock pyproject.toml $(KERNELS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "packedesm needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

lock:
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet torch==2.13.0 '.[dev,slurm]'
	{ echo "# Every package of the environment that is tested, made by: make lock"; \
	  $(VENV)-lock/bin/python -m pip freeze --exclude packedesm | sed 's/^\(torch==[0-9.]*\)+.*/\1/'; } > requirements.lock
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) $(TRITON) $(MODELS) $(EXTRAS) .snakemake results
