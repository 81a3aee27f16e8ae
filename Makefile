# Every target works on a fresh clone, and does only what is still to be done.

# Tried in this order; the oldest Python that we support comes first, so that nobody develops on a newer one by accident.
PYTHON ?= python3.11 python3.12 python3.13 python3
VENV := .venv
BIN := $(VENV)/bin
# Only errors are shown, such as a hash that differs.
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip -qq install
UV := UV_PYTHON_DOWNLOADS=never $(BIN)/uv
# `make install` links to .venv/bin/backy from here, so that a shell finds it.
PREFIX ?= $(shell if [ "$$(id -u)" -eq 0 ]; then echo /usr/local; else echo "$$HOME/.local"; fi)
# The oldest Python that we support runs all tests, the newest one the unit tests if this machine has it; what is between them
# is for `make soak`.
NEWEST_PYTHON := 3.13
PYTHONS_BETWEEN := 3.12
# Half of the time tests wait for programs and disks, so three workers keep two processors busy. There are no more of them on
# a larger machine: the tests on real file systems and programs share one kernel.
WORKERS ?= 3

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install test test-newest soak check bench demo deb man schemas completion format lock clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

install: $(VENV)/.installed ## make .venv/bin/backy, and make backy and backy-restore commands in PREFIX/bin (/usr/local or ~/.local)
	@tools/link-program $(BIN)/backy $(PREFIX)/bin
	@tools/link-program $(BIN)/backy-restore $(PREFIX)/bin

test: $(VENV)/.dev ## run all tests; as root on real file systems and programs
	@tools/apt-install tests/lab/apt-packages.txt
	@$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

test-newest: $(VENV)/.dev ## run the unit tests on the newest Python that is supported, if it is here
	@tools/test-on-pythons $(VENV) $(WORKERS) $(NEWEST_PYTHON)

# With -rP each test says at the end how much it did: docs/reliability.md has the figures of the last run.
SOAK := BACKY_SEEDS=50 BACKY_ALL_CALLS=1 BACKY_ROUNDS=10 BACKY_KILLS=1000 BACKY_FLIPS=1000
soak: $(VENV)/.dev ## run the tests of crashes, faults and random sequences for hours
	@tools/apt-install tests/lab/apt-packages.txt
	@$(SOAK) HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest -n $(WORKERS) -rP tests/faults tests/sources \
		$$(grep -rlE --include='test_*.py' '^from hypothesis|"(BACKY_ROUNDS|HYPOTHESIS_PROFILE)"' tests | sort) $(ARGS)
	@$(if $(ARGS),,tools/test-on-pythons $(VENV) $(WORKERS) $(PYTHONS_BETWEEN))

check: $(VENV)/.dev ## check format, lint, types, layers, doors and sizes
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m tools.check_doors
	@$(BIN)/python -m tools.check_sizes

bench: $(VENV)/.installed ## measure backy beside restic, borg and qemu-img
	@echo restic borgbackup qemu-utils qemu-system-common libnbd-bin zstd xfsprogs mount fuse3 | tools/apt-install -
	@$(BIN)/python benchmarks/run.py $(ARGS)

demo: $(VENV)/.installed ## watch backy back up, damage, verify and restore a small disk image
	@echo e2fsprogs zstd b3sum diffutils | tools/apt-install -
	@./demo.sh

deb: $(VENV)/.installed ## make dist/backy_VERSION.deb for the Debian that this runs on
	@echo python3 | tools/apt-install -
	@tools/make-deb $(BIN)/python dist

man: $(VENV)/.installed ## write the manual pages to build/share/man
	@$(BIN)/python -m tools.make_man build/share/man

schemas: $(VENV)/.installed ## write docs/schemas/ from the types of messages
	@$(BIN)/python -m tools.make_schemas

completion: $(VENV)/.installed ## write completion for bash, zsh and fish to build/share
	@$(BIN)/python -m tools.make_completion build/share

format: $(VENV)/.dev ## format the code
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

# Old versions are kept where they still fit; `make lock ARGS=--upgrade` takes the newest.
LOCK := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command "make lock" $(ARGS)
lock: $(VENV)/.uv ## write requirements/ from pyproject.toml
	@$(LOCK) pyproject.toml --group dev --output-file requirements/dev.txt
	@$(LOCK) pyproject.toml --group test --constraints requirements/dev.txt --output-file requirements/test.txt
	@$(LOCK) pyproject.toml --extra mount --constraints requirements/dev.txt --output-file requirements/run.txt
	@$(LOCK) --group build --constraints requirements/dev.txt --output-file requirements/build.txt
	@$(LOCK) --group lock --output-file requirements/uv.txt

clean: ## remove everything that the tools made
	@rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find src tests tools benchmarks contrib -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(VENV)/.made: tools/make-venv
	@echo "Making the virtual environment $(VENV) ..."
	@tools/make-venv $(VENV) $(PYTHON)
	@touch $@

# The package is built with the locked hatchling of the .venv itself, so that nothing comes in unchecked.
$(VENV)/.installed: $(VENV)/.made requirements/run.txt requirements/build.txt pyproject.toml src/backy/__init__.py \
		src/backy/repository/restore.sh
	@echo "Installing the Python libraries of backy into $(VENV), about a minute ..."
	@$(PIP) --require-hashes -r requirements/run.txt -r requirements/build.txt
	@$(PIP) --no-index --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q src/backy
	@touch $@

$(VENV)/.dev: $(VENV)/.installed requirements/dev.txt
	@echo "Installing the tools for development into $(VENV) ..."
	@$(PIP) --require-hashes -r requirements/dev.txt
	@touch $@

$(VENV)/.uv: $(VENV)/.made requirements/uv.txt
	@$(PIP) --require-hashes -r requirements/uv.txt
	@touch $@
