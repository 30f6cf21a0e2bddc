# Two commands do all the set-up: `make app` opens the studio, `make test` proves it.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.installed
DEV_READY := $(VENV)/.installed-dev
PIP := $(PY) -m pip --disable-pip-version-check install --no-compile
# Cache compiled modules even where that is switched off; otherwise each process would compile them again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: app test faults check bench screenshots clean

app: $(READY)
	$(PY) -m streamlit run app.py

test: $(DEV_READY)
	$(PY) -m pytest -n auto $(ARGS)

faults: $(DEV_READY)
	$(PY) -m tests.faults $(ARGS)

check: $(DEV_READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright
	$(VENV)/bin/lint-imports
	$(PY) -m pytest tests/test_floors.py

bench: $(DEV_READY)
	$(PY) -m benchmarks.run

screenshots: $(DEV_READY)
	$(PY) -m benchmarks.screenshots

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "SOUSA engine needs Python 3.11, 3.12 or 3.13; this is %d.%d. Try: make app PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	@echo "installing the packages of requirements.txt into $(VENV), once: 2 minutes or more; 1.8 GB with a CPU build of PyTorch, several GB with CUDA"
	$(PIP) -r requirements.txt
	$(PIP) --quiet --no-deps --no-build-isolation --editable .
	$(PY) -m sousa_engine.maintenance.torchaudio_repair
	@echo "compiling the studio's packages and audio views, once (a minute)"
	@$(PY) -c 'import optuna, sousa_engine.backbones.ast_network, sousa_engine.cli.main, sousa_engine.training.loop, streamlit.web.server.starlette'
	@$(PY) -m sousa_engine.analysis.listen
	@touch $(READY)

$(DEV_READY): $(READY) requirements-dev.txt
	@echo "installing the packages of requirements-dev.txt, for tests and checks, once: a minute, 0.3 GB"
	$(PIP) -r requirements-dev.txt
	@touch $(DEV_READY)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
