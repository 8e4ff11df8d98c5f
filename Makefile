# Every command of the project. `make` alone lists them; each one works in a fresh clone.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MODEL ?= emoji
PORT ?= 50051
OUT ?= demo.png
DATA ?= data
RUNS ?= runs
MODEL_OUT ?= $(RUNS)/model

# On a small machine several OpenMP threads per process wait for each other more than they work.
ONE_THREAD := OMP_NUM_THREADS=1

# The tests of the page drive a real browser. Installed where that is possible; without one they are skipped.
CHROMIUM := { test "$$(id -u)" = 0 && command -v apt-get > /dev/null && timeout 600 sh -c \
	"apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium chromium-driver" > /dev/null 2>&1; }

.DEFAULT_GOAL := help
.PHONY: help setup proto reference check test demo serve train bench study trust ci

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## create .venv with the pinned versions and the commands

$(READY): pyproject.toml constraints.txt
	@echo "== setup: installing into $(VENV)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@command -v chromium chromedriver > /dev/null || $(CHROMIUM) || \
		echo "== setup: no Chromium; the tests of the page will be skipped (Debian: chromium, chromium-driver)"
	@touch $@

proto: $(READY) ## regenerate shared/wire/pb from proto/
	@echo "== proto: shared/wire/pb from proto/ciar/v1/ciar.proto"
	$(BIN)/python -m grpc_tools.protoc -I shared/wire/pb=proto/ciar/v1 \
		--python_out=. --pyi_out=. --grpc_python_out=. shared/wire/pb/ciar.proto

reference: $(READY) ## regenerate docs/protocol.md and docs/rest.md
	@echo "== reference: docs/protocol.md from the proto, docs/rest.md from OpenAPI"
	$(ONE_THREAD) $(BIN)/python -m evaluation.reference

check: $(READY) ## lint, types, protocol up to date, import law
	@echo "== check: ruff, mypy, buf, generated code, import law"
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(ONE_THREAD) $(BIN)/pytest -q tests/wire/test_generated.py tests/test_architecture.py

test: $(READY) ## all tests; no network, under 10 minutes on two cores
	@echo "== test: pytest"
	$(ONE_THREAD) $(BIN)/pytest -q

demo: $(READY) ## draw one picture over a real server; OUT=demo.png
	@echo "== demo: one picture into $(OUT)"
	$(ONE_THREAD) PATH="$(CURDIR)/$(BIN):$$PATH" bash deploy/demo.sh "$(OUT)"

serve: $(READY) ## start a cloud server; MODEL=emoji PORT=50051
	@echo "== serve: $(MODEL) on port $(PORT)"
	$(BIN)/cloud-server --model $(MODEL) --port $(PORT)

train: $(READY) ## train a model folder from pictures; DATA=folder RUNS=runs MODEL_OUT=runs/model
	@echo "== train: $(DATA) to $(MODEL_OUT): tokenizer, base, device, bundle, rehearse (hours on a CPU; each step resumes)"
	$(BIN)/ciar-train tokenizer --data $(DATA) --out $(RUNS)/tokenizer
	$(BIN)/ciar-train base --data $(DATA) --tokenizer $(RUNS)/tokenizer/vq --out $(RUNS)/base
	$(BIN)/ciar-train device --data $(DATA) --tokenizer $(RUNS)/tokenizer/vq --cloud $(RUNS)/base/cloud --out $(RUNS)/device
	$(BIN)/ciar-train bundle --tokenizer $(RUNS)/tokenizer/vq --cloud $(RUNS)/base/cloud \
		--device $(RUNS)/device/device --out $(MODEL_OUT)
	$(BIN)/ciar-eval rehearse $(MODEL_OUT) --data $(DATA)

bench: $(READY) ## measure every policy and print the tables
	@echo "== bench: ciar-eval bench"
	$(BIN)/ciar-eval bench

study: $(READY) ## every table and figure with one image a row, to see that they come about (about a minute)
	@echo "== study: ciar-eval all --smoke"
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
		$(ONE_THREAD) $(BIN)/ciar-eval all --smoke --out "$$folder" > /dev/null

trust: $(READY) ## faults, load, soak and replicas in their short forms (minutes)
	@echo "== trust: ciar-eval faults, load, soak, replicas"
	$(ONE_THREAD) $(BIN)/ciar-eval faults --short
	$(ONE_THREAD) $(BIN)/ciar-eval load --short
	$(ONE_THREAD) $(BIN)/ciar-eval soak --short
	$(ONE_THREAD) $(BIN)/ciar-eval replicas --short

ci: check test trust study ## check, test, trust, study, and the demo into a temporary picture
	@echo "== ci: demo"
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(MAKE) demo OUT="$$folder/demo.png" && test -s "$$folder/demo.png"
