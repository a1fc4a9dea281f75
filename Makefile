# make demo   sets up everything and runs the main job on a synthetic cohort
# make bench NAME=engine   measures, and writes out/benchmarks/engine.json
# make test   sets up everything and runs the tests (test-all: the slow ones and the fault suite too)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo test test-all bench docs clean check

check:
	@$(if $(PYTHON),:,echo "twinlib needs Python 3.11 or newer: no python3 was found on the PATH" >&2; exit 1)
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "twinlib needs Python 3.11 or newer: $(PYTHON) is $$("$(PYTHON)" -V 2>&1)" >&2; exit 1; }
	@command -v "$${JAVA_HOME:+$$JAVA_HOME/bin/}java" >/dev/null || \
	  { echo "twinlib needs Java 17 or newer: no java was found on the PATH or in JAVA_HOME" >&2; exit 1; }
	@v=$$("$${JAVA_HOME:+$$JAVA_HOME/bin/}java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1); \
	  [ "$${v:-0}" -ge 17 ] || { echo "twinlib needs Java 17 or newer: found Java $${v:-of unknown version}" >&2; exit 1; }

$(READY): pyproject.toml constraints.txt | check
	@test -x $(PY) || "$(PYTHON)" -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

demo: check $(READY)
	$(PY) jobs/refresh.py --config conf/demo.yaml

test: check $(READY)
	$(PY) -m pytest -m "not slow and not faults" --numprocesses 2 --dist loadfile

test-all: check $(READY)
	$(PY) -m pytest

bench: check $(READY)
	OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(PY) -m benchmarks.$(NAME)

docs: check $(READY)
	$(PY) -m twinlib.tables.dictionary docs/data-dictionary.md
	@test ! -d out/demo/tables || $(PY) -m twinlib.report.figure out/demo docs/demo.png

clean:
	rm -rf out build *.egg-info
