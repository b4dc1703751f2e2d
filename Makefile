# make run    set up .venv and run the workflow on the shipped example
# make test   set up .venv and run every test that can run on this machine
# make check  linters and formatters
# make lock   pin the newest versions that pyproject.toml admits
# make bench-micro  time packer, tokeniser, sharding, collation, store and merge

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: run test check lock clean

run: $(READY)
	$(BIN)/snakemake --cores all --quiet rules
	@cat docs/after-run.txt

test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal -m "not slurm"
	$(BIN)/python -m pytest -m slurm

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint

# Installed once; again only after a change of what is to be installed.
$(READY): requirements.lock pyproject.toml
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
	rm -rf $(VENV) .snakemake results

.PHONY: bench-micro
bench-micro: $(READY)
	$(BIN)/python -m benchmarks.micro
