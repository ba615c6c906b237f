# make night: the quick start.   make test: the whole suite.   make install: just the environment.
PYTHON ?= python3
NIGHTSHIFT = .venv/bin/nightshift
INBOX = data/inbox/docstrings

.PHONY: install night test lint lock clean

install: .venv/.installed

# torch first and pinned: its builds differ by platform, so it stands beside the lock.
.venv/.installed: requirements.lock requirements-torch.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "Nightshift needs Python 3.11 to 3.13: make PYTHON=python3.12"; exit 1; }
	test -d .venv || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --requirement requirements-torch.txt
	.venv/bin/python -m pip install --quiet --requirement requirements.lock
	.venv/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@

night: install
	@test -f data/sample/night-3.parquet || $(NIGHTSHIFT) sample data/sample
	@mkdir -p $(INBOX) && cp -p data/sample/night-1.csv $(INBOX)/
	$(NIGHTSHIFT) run docstrings --night night-1

# Two at a time, a file each: most of what a night waits for is not the processor.
test: install
	.venv/bin/python -m pytest -n 2 --dist loadfile

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

# Run after changing a range in pyproject.toml.
lock: install
	.venv/bin/python -m pip install --quiet uv
	.venv/bin/uv pip compile --quiet pyproject.toml --group dev --universal --python-version 3.11 \
	  --no-header --no-annotate --constraint requirements-torch.txt \
	  | grep -vE '^(torch|triton|cuda-|nvidia-)' > requirements.lock

clean:
	rm -rf .venv data
