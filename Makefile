# `make demo` and `make test` set everything up themselves; they need Python >= 3.11 and make, nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo browser test test-slow test-nnunet check audit licences bench docs clean
.DEFAULT_GOAL := demo

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "contextseg needs Python >= 3.11; this is %s. Name another: make PYTHON=python3.12" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,track,docs,audit]'
	@touch $@

demo: $(READY)
	$(BIN)/contextseg demo --output demo

# The tests of the annotator's page drive a Chromium or Chrome that is on the PATH, or named by
# CONTEXTSEG_BROWSER; they are skipped where there is none. This installs one on Debian and Ubuntu.
browser:
	@command -v chromium chromium-browser google-chrome chrome > /dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; \
	else \
		echo "no Chromium on the PATH: the tests of the annotator's page are skipped"; \
	fi

test: $(READY)
	$(BIN)/python -m pytest

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow -n 1

# 10,000 damaged inputs for every reader, an hour or two; `$(BIN)/python -m tests.fuzz --index N` repeats one.
fuzz: $(READY)
	nice -n 15 $(BIN)/python -m tests.fuzz --count $(or $(COUNT),10000) --seed $(or $(SEED),0) --json fuzz.json

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_rooms.py tests/test_docs.py -n 0
	@$(BIN)/python tools/audit.py || echo 'make audit fails on these'

# Known vulnerabilities of the pinned versions; says so where the advisories cannot be reached.
audit: $(READY)
	$(BIN)/python tools/audit.py

licences: $(READY)
	$(BIN)/python tools/licences.py

# The generated pages, then the site in site/; open site/index.html.
docs: $(READY)
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The peers live in an environment of their own. nnU-Net and its parts ask for torchvision and timm, which what is measured
# does not need, and which do not import beside a CPU build of torch: they come without their dependencies.
bench:
	$(MAKE) VENV=.venv-bench .venv-bench/.bench
	.venv-bench/bin/python benchmarks/run.py $(if $(QUICK),--quick)

# Beside nnU-Net itself: its commands train by our trainers, and we predict with its models.
test-nnunet:
	$(MAKE) VENV=.venv-bench .venv-bench/.bench
	.venv-bench/bin/python -m pytest tests/test_nnunet_peer.py -n 0

.venv-bench/.bench: .venv-bench/.ready benchmarks/requirements.txt
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -c benchmarks/requirements.txt -e '.[bench]'
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/requirements.txt
	@touch $@

clean:
	rm -rf .venv .venv-bench demo build dist site
