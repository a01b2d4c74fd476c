# Two commands do everything on a fresh machine with Python 3.11+: `make app` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Half of what pip does is to compile all of every package; a third of that is ever imported, is compiled then, and kept even where the environment says not to.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
export PYTHONDONTWRITEBYTECODE :=

.PHONY: app test lint seeds survey timings summation token-loops bench machine-code soak screenshots docs demo-model lock clean

app: $(VENV)/app.stamp
	$(BIN)/python app.py

test: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m explorer.docs --check
	OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

seeds: $(VENV)/app.stamp
	$(BIN)/python -m explorer seed
	$(BIN)/python -m explorer ladder
	$(BIN)/python -m explorer speed --method gptq --bits 4 --granularity group --group-size 64 --batch 32 --record
	$(BIN)/python -m explorer.docs

survey: $(VENV)/app.stamp
	$(BIN)/python -m explorer survey
	$(BIN)/python -m explorer.docs

timings: $(VENV)/test.stamp
	$(BIN)/python -m assets.timings
	$(BIN)/python -m explorer.docs

summation: $(VENV)/app.stamp
	$(BIN)/python -m assets.summation
	$(BIN)/python -m explorer.docs

token-loops: $(VENV)/app.stamp
	$(BIN)/python -m assets.token_loops
	$(BIN)/python -m explorer.docs

bench: $(VENV)/app.stamp
	$(BIN)/python -m kernels --shapes layer --rows 1,4,16,64 --peers --write
	$(BIN)/python -m explorer.docs

machine-code: $(VENV)/test.stamp
	TRITON_DEFAULT_FP_FUSION=1 PYTHONPATH=. $(BIN)/python tests/offline_compile.py --record > /dev/null
	$(BIN)/python -m explorer.docs

soak: $(VENV)/test.stamp
	$(BIN)/python -m tests.soak long
	$(BIN)/python -m explorer.docs

screenshots: $(VENV)/test.stamp
	$(BIN)/python -m assets.screenshots --readme

docs: $(VENV)/app.stamp
	$(BIN)/python -m explorer.docs

demo-model: $(VENV)/app.stamp
	$(BIN)/python -m assets.train_demo

lock: $(VENV)/test.stamp
	$(BIN)/python -m assets.lock

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/app.stamp: requirements.txt constraints.txt | $(VENV)/bin/python
	$(INSTALL) -r requirements.txt
	$(BIN)/python -m kernels.native
	touch $@

$(VENV)/test.stamp: requirements-test.txt requirements.txt constraints.txt | $(VENV)/bin/python
	$(INSTALL) -r requirements-test.txt
	$(BIN)/python -m kernels.native
	touch $@ $(VENV)/app.stamp

clean:
	rm -rf $(VENV)
