# Two commands do everything on a fresh machine: `make demo` and `make test`. Both need Python (>= 3.10) and make only.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The sinks' packages are large; with EXTRAS=test,sinks their round trips are tested too, as .ci/run does.
EXTRAS ?= test

.PHONY: demo test lint docs bench clean

# Of what is installed a third is ever imported, and compiled then: pip would compile all of it, for more than a minute.
INSTALL := $(PIP) install --quiet --no-compile --constraint constraints.txt

# torch comes first and by its exact version, so that no dependency can pull another build of it.
$(VENV)/.installed: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) "$$(grep '^torch==' constraints.txt)"
	$(INSTALL) --editable .
	$(MAKE) --no-print-directory $(VENV)/checkout
	touch $@

# A folder named gnnstab that holds this checkout would come before an editable install, as a package without code. It does
# not come before a package on the path: this folder leads to the package alone, and no other folder here can be imported.
$(VENV)/checkout:
	mkdir -p $@
	ln -sfn "$(CURDIR)/gnnstab" $@/gnnstab
	$(BIN)/python -c "import pathlib, sysconfig; pathlib.Path(sysconfig.get_path('purelib'), 'gnnstab-checkout.pth').write_text('$(abspath $@)\n')"

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) --editable ".[$(EXTRAS)]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	$(INSTALL) --editable ".[lint,docs]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/gnnstab demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/generate.py --check
	$(BIN)/sphinx-build -W -q -b html docs docs/_build/html

bench: $(VENV)/.installed-test
	$(BIN)/python tests/benchmarks/overhead.py

clean:
	rm -rf $(VENV) build dist *.egg-info docs/_build .pytest_cache .mypy_cache .ruff_cache
