# The commands of daily work; `make help` lists them. Each runs in the environment that is active.
.DEFAULT_GOAL := help
.PHONY: help quality style test test-fast docs

help: ## What there is to make
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

quality: ## Look at the source: ruff, and the types where ty is installed
	ruff check .
	ruff format --check .
	if command -v ty > /dev/null; then ty check hf_finemix; fi

style: ## Put the source in order
	ruff check --fix .
	ruff format .

test: ## All tests, as the README runs them
	pytest -n 2 --dist loadfile --durations=15

test-fast: ## Two minutes on two cores: something of every room, without long jobs and hostile files
	pytest -n auto --dist loadfile --durations=15 -m "not slow and not jobs and not processes and not hostile"

docs: ## Print the tables of docs/ that a script makes within a minute or two
	python scripts/memory_table.py
	pytest -q tests/align/test_families.py --junitxml families.xml > /dev/null
	python scripts/family_table.py families.xml && rm families.xml
