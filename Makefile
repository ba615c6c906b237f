# make night: the quick start.   make test: the whole suite.   make install: just the environment.
# make audit: known holes in what is locked.   make sbom: what is installed, as a bill of materials.
PYTHON ?= python3
NIGHTSHIFT = .venv/bin/nightshift
INBOX = data/inbox/docstrings

# Where it is set, as in many images, every process compiles every module of ours anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install night test lint lock audit sbom clean

install: .venv/.installed

# torch last and pinned: its builds differ by platform, so it stands beside the lock, which has all
# that it needs but CUDA's own libraries.
.venv/.installed: requirements.lock requirements-dev.lock requirements-torch.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "Nightshift needs Python 3.11 to 3.13: make PYTHON=python3.12"; exit 1; }
	test -d .venv || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --require-hashes --no-deps \
	  --requirement requirements.lock --requirement requirements-dev.lock
	.venv/bin/python -m pip install --quiet --requirement requirements-torch.txt
	.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	.venv/bin/python -m pip check
	@touch $@

night: install
	@test -f data/sample/night-3.parquet || $(NIGHTSHIFT) sample data/sample
	@mkdir -p $(INBOX) && cp -p data/sample/night-1.csv $(INBOX)/
	$(NIGHTSHIFT) run docstrings --night night-1

# Three at a time, a file each: most of what a night waits for is not the processor.
test: install
	.venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

# Run after changing a range in pyproject.toml. Hashes are of every file that the index has, so one
# lock serves all platforms.
PIN = .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-header --no-annotate --constraint requirements-torch.txt
KNOWN = $$(sed -n 's/^\([a-z0-9._-]*\)==.*/--no-emit-package \1/p' requirements.lock)
WITHOUT_TORCH = awk '/^[a-z]/ { keep = !/^(torch|triton|cuda-|nvidia-)/ } keep'

lock:
	test -d .venv || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet uv
	$(PIN) pyproject.toml --extra servers | $(WITHOUT_TORCH) > requirements.new
	mv requirements.new requirements.lock
	$(PIN) pyproject.toml --extra servers --group dev --constraint requirements.lock $(KNOWN) \
	  | $(WITHOUT_TORCH) > requirements-dev.lock
	$(PIN) --group audit > requirements-audit.lock

# In an environment of their own, so that they are not part of what they look at.
.venv/audit/.installed: requirements-audit.lock .venv/.installed
	test -d .venv/audit || $(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet --require-hashes --no-deps --requirement requirements-audit.lock
	@touch $@

audit: .venv/audit/.installed
	.venv/audit/bin/python .ci/audit.py requirements.lock requirements-dev.lock requirements-torch.txt

sbom: .venv/audit/.installed
	mkdir -p build
	.venv/audit/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
	  --output-file build/sbom.cdx.json .venv/bin/python

clean:
	rm -rf .venv data
