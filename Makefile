# Everything a person runs. `make` alone lists it.
SHELL := /bin/sh
PINLAKE_HOME ?= .pinlake
CACHE ?= .cache/openclipart
PY := .venv/bin/python
# Airflow's nights in one process, all other files in the other (tests/conftest.py).
PYTEST_WORKERS ?= --numprocesses 2 --dist loadfile --no-loadscope-reorder
COMPILE := .venv/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet
export PINLAKE_HOME

.DEFAULT_GOAL := help
.PHONY: help env needed demo assistant notebook up down cluster-test test lint code audit audited unit docs train train-assistant lock compose-env clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{printf "make %-16s %s\n", $$1, $$2}'

env: ## the environment in .venv, from requirements-dev.lock
	@tools/setup_env.sh

demo: env ## three real nights on real pictures through Airflow and Spark, then a report
	@$(PY) -m demo.run --home "$(PINLAKE_HOME)" --cache "$(CACHE)"

assistant: env ## the assistant's page and service, on the demo's store
	@[ -e "$(PINLAKE_HOME)/releases/pins/LIVE" ] || { echo "there is no release in $(PINLAKE_HOME) yet: run \`make demo\` first" >&2; exit 1; }
	@$(PY) -m assistant --home "$(PINLAKE_HOME)" --people

notebook: env ## docs/lake.ipynb on the demo's store: a day's tables, neighbours, drift, recall, interests
	@[ -e "$(PINLAKE_HOME)/releases/pins/LIVE" ] || { echo "there is no release in $(PINLAKE_HOME) yet: run \`make demo\` first" >&2; exit 1; }
	@$(PY) -m demo.notebook --home "$(PINLAKE_HOME)"

up: env ## Airflow with its web page, for a person to use
	@$(PY) -m demo.airflow --home "$(PINLAKE_HOME)" up

down: env ## ends what `make up` started
	@$(PY) -m demo.airflow --home "$(PINLAKE_HOME)" down

cluster-test: env ## a night, a release, a backfill and a migration on a cluster's processes and s3://, with kills: a quarter of an hour
	@$(PY) -m demo.cluster --folder .cluster --cache "$(CACHE)"

test: code unit audited ## lint, types and the whole suite, a night through Airflow among it; known vulnerabilities last

lint: code audited ## lint, types, directions of imports, known vulnerabilities of what the locks pin

code: env
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

audit: env ## known vulnerabilities of what the locks pin (ADVISORIES=all.zip: in OSV's dump, without the Internet)
	@$(PY) tools/audit.py $(if $(ADVISORIES),--advisories "$(ADVISORIES)")

# As `audit`; where no service of advisories can be reached (exit status 4), that is a warning.
audited: env
	@$(PY) tools/audit.py $(if $(ADVISORIES),--advisories "$(ADVISORIES)") || { status=$$?; [ $$status = 4 ] || exit $$status; \
		echo "WARNING: the dependencies were not audited, see above. Run \`make audit\` where OSV or PyPI can be reached." >&2; }

needed:
	@tools/setup_env.sh --tests

unit: env needed
	@$(PY) -m demo.openclipart --cache "$(CACHE)"
	@PINLAKE_DEMO_CACHE="$(CACHE)" OMP_WAIT_POLICY=PASSIVE $(PY) -m pytest $(PYTEST_WORKERS) $(PYTEST_ARGS)

docs: env ## docs/tables.md from the schemas
	@$(PY) -m embedding.tables.document > docs/tables.md

train: env ## the shipped encoder's weights, trained anew on the demo's lake
	@$(PY) -m demo.train --home "$(PINLAKE_HOME)"

train-assistant: env ## the assistant's projector and LoRA weights, trained anew on the demo's lake: half an hour
	@$(PY) -m demo.train_assistant --home "$(PINLAKE_HOME)"

lock: env ## requirements.lock and requirements-dev.lock from pyproject.toml, and the locks of tools/images
	@$(COMPILE) pyproject.toml --output-file requirements.lock
	@$(COMPILE) pyproject.toml --extra dev --constraint requirements.lock --output-file requirements-dev.lock
	@$(COMPILE) tools/images/store.in --constraint requirements-dev.lock --output-file tools/images/store.lock
	@$(COMPILE) tools/images/mlflow.in --output-file tools/images/mlflow.lock

compose-env: ## .env for docker-compose.yml, its secrets made at random; keeps what is there
	@python3 tools/make_env.py

clean: ## removes the demo's data (not .venv, not the fetched pictures)
	rm -rf "$(PINLAKE_HOME)"
