# demo and test install what they need on a Debian 12 machine with Python 3.11, git and make, as root; see
# packaging/prepare.sh. Each target ends with a line that says how it went.

PYTHON ?= python3
BIN := build/venv/bin

.PHONY: help prepare demo test test-long check bench bench-engine clean distclean

help:
	@echo "make demo       the lab, a message and a dialogue through the gateway, everything compared"
	@echo "make test       all tests but the long ones"
	@echo "make test-long  the long ones"
	@echo "make check      ruff, mypy and the rules of the house"
	@echo "make bench      the table of throughputs"
	@echo "make bench-engine  the engine alone, against memcpy"
	@echo "make clean      remove what was built; distclean: the virtual environment and fetched packages as well"

prepare:
	@PYTHON=$(PYTHON) packaging/prepare.sh demo

demo: prepare
	@$(BIN)/nfqguard lab demo

test:
	@PYTHON=$(PYTHON) packaging/prepare.sh test
	@$(call verdict,test,$(BIN)/python -m pytest -m "not long" $(ARGS))

test-long:
	@PYTHON=$(PYTHON) packaging/prepare.sh test
	@$(call verdict,test-long,$(BIN)/python -m pytest -m long $(ARGS))

check:
	@PYTHON=$(PYTHON) packaging/prepare.sh test
	@$(call verdict,check,$(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/python -m pytest -q tests/test_house.py)

bench:
	@PYTHON=$(PYTHON) packaging/prepare.sh bench
	@$(call verdict,bench,$(BIN)/python -m tests.bench $(ARGS))

bench-engine:
	@PYTHON=$(PYTHON) packaging/prepare.sh bench
	@$(call verdict,bench-engine,$(BIN)/python -m tests.bench.engine_alone $(ARGS))

clean:
	rm -rf build/stamps build/lib.* build/temp.* build/prepare.log dist *.egg-info
	rm -f nfqguard/_engine*.so
	find . -path ./build -prune -o \( -name __pycache__ -o -name .pytest_cache -o -name .mypy_cache -o -name .ruff_cache \
		-o -name .hypothesis \) -prune -exec rm -rf {} +

distclean: clean
	rm -rf build

# $(call verdict,NAME,COMMAND): run it, and end with a line that says how it went and with its exit status.
verdict = { $(2); } && echo "make $(1): PASSED" || { status=$$?; echo "make $(1): FAILED (exit status $$status)" >&2; exit $$status; }
