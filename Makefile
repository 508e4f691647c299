# Two commands from a fresh clone: `make demo` and `make test`. The rest is in `make help`.
# Needs Python 3.11, make and a C compiler.

PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
# One release of torch for everybody. A CPU wheel (2.13.0+cpu), where pip is offered one, is taken
# before the plain one, since its version sorts after it.
TORCH  ?= torch==2.13.0
JOBS   ?= 2
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv install links demo test test-slow lint types toolchains clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

venv: $(VENV)/.stamp-venv ## the environment, empty
$(VENV)/.stamp-venv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	@touch $@

# torch goes first: the extras ask for "at least", and would fetch a newer one.
$(VENV)/.stamp-compile: pyproject.toml $(VENV)/.stamp-venv
	$(BIN)/python -m pip install "$(TORCH)"
	$(BIN)/python -m pip install -e ".[compile]"
	@touch $@

$(VENV)/.stamp-test: pyproject.toml $(VENV)/.stamp-compile
	$(BIN)/python -m pip install -e ".[test]"
	@touch $@

install: $(VENV)/.stamp-test links ## everything that the tests need

links: ## links (git-ignored) by which type checkers see the folders as one package
	@for part in compiler kernels models passes targets; do \
		ln -sfn ../$$part butterflyc/$$part; \
	done

demo: $(VENV)/.stamp-compile links ## compile the shipped model and compare it with PyTorch
	$(BIN)/butterflyc demo

test: toolchains install lint types ## all tests but the slow ones
	$(BIN)/pytest -m "not slow" -n $(JOBS) $(PYTEST_ARGS)

# pytest ends with 5 when it selects no test, which is no failure here.
test-slow: install ## the tests that take minutes
	$(BIN)/pytest -m slow -n $(JOBS) $(PYTEST_ARGS) || [ $$? -eq 5 ]

lint: install ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## mypy, strict
	$(BIN)/mypy

# Goes on where a package cannot be had: a test that needs it says so, and fails in CI.
toolchains: ## the Debian packages of tests/toolchains.txt, where this is root
	@missing=""; \
	for package in $$(grep -v '^#' tests/toolchains.txt); do \
		dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q '^install ok installed' \
			|| missing="$$missing $$package"; \
	done; \
	if [ -z "$$missing" ]; then \
		echo "toolchains: all there"; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
			apt-get install -y --no-install-recommends $$missing \
			|| echo "toolchains: could not install$$missing"; \
	else \
		echo "toolchains: to install what is missing, run"; \
		echo "    sudo apt-get install --no-install-recommends$$missing"; \
	fi

clean: ## what was built; the environment stays
	rm -rf build dist *.egg-info bfly-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
