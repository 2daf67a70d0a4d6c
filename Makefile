# One environment in .venv, made by `setup` and used by everything else. POSIX sh and GNU make 3.81 (macOS) suffice.
PYTHON ?= python3
# More for pip, such as the index of torch's CPU wheels where the plain one would bring several GB of CUDA.
PIP_ARGS ?=

BIN = .venv/bin
PYTEST = HF_HUB_OFFLINE=1 $(BIN)/python -m pytest
HOOK = --jaxtyping-packages=vivant,checker.checked
STAMP = .venv/installed
# Official portraits, which tests look for faces in: tests/portraits.py reads them there.
PORTRAITS = .venv/photos/face_recognition-1.3.0.tar.gz

.PHONY: setup test test-slow check format demo bench clean

setup: $(STAMP) $(PORTRAITS)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v < (3, 14) and \
	  "vivant needs Python 3.11 to 3.13 and this is %d.%d: make setup PYTHON=python3.11" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

$(PORTRAITS): | $(STAMP)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps \
	  --no-binary face_recognition --dest $(@D) face_recognition==1.3.0

# Two lanes, both of which always run. The first holds what the run-time checker of shapes and types would break; that
# it selects no test is no failure (pytest's exit code 5). The last line is pytest's summary of the main lane.
test: setup
	@status=0; \
	$(PYTEST) -m '(compile or unchecked) and not slow' || test $$? -eq 5 || status=1; \
	$(PYTEST) -m 'not compile and not unchecked and not slow' $(HOOK) || status=1; \
	exit $$status

test-slow: setup
	$(PYTEST) -m slow

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/typos
	$(BIN)/pyright

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo: setup
	$(BIN)/vivant demo -o out --overwrite

bench: setup
	$(BIN)/python benchmarks/pia.py

clean:
	rm -rf .venv build dist out src/*.egg-info .pytest_cache .ruff_cache .hypothesis
