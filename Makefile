# make train              a DLRM from synthetic raw logs to its AUC target, on two ranks
# make train RAW=log.tsv  the same from your own logs (Criteo's format, plain or .gz; several: RAW="a b")
# make interact_op        the fused interaction of --custom_interact
# make test               the tests;  make lint  the linters
# make bench              what is claimed about speed, measured here
#
# make sok                the environment of the profile sok: TensorFlow 2.14, SparseOperationKit
# make sok-check          what is there for it, and what is missing
# make test PROFILE=sok   any of the above in that environment (the linters have theirs)
# make bundle PROFILE=sok  all of it for hosts without internet; BUNDLE="--part_mb 500"
#
# Longer tests:
# make faults             every fault on 1, 2 and 3 ranks at random moments; FAULTS="--repeat 5"
# make test-ingest        ten kills of each engine of ingest, and both engines over every rule set
# make test-interact      the fused interaction at every shape, and its kernels under the sanitizers

VENV_default := .venv
VENV_sok := .venv-sok

PYTHON ?= python3
NP ?= 2
FLAGS ?=
FAULTS ?=
BUNDLE ?=
PROFILE ?= default
VENV := $(or $(VENV_$(PROFILE)),$(error expected PROFILE=default or PROFILE=sok, found $(PROFILE)))
RUN := export PATH="$(CURDIR)/$(VENV)/bin:$$PATH";
RULES ?= dlrm
ROWS ?= 1000000

ifdef RAW
PRESET := logs
DATA := build/logs
RAW_FILES := $(RAW)
else
PRESET := demo
DATA := build/demo
RAW_FILES := $(DATA)/raw.tsv
endif

.PHONY: train test test-ingest test-interact faults lint bench setup sok sok-check interact_op bundle clean
.DELETE_ON_ERROR:

setup: $(VENV)/.ready

.venv/.ready: requirements.txt requirements/dev.txt requirements/horovod.txt \
    requirements/spark.txt setup/environment.sh setup/horovod.sh setup/wheels.sh
	PYTHON=$(PYTHON) setup/environment.sh
	touch $@

.venv-sok/.ready: requirements/sok.txt requirements/horovod.txt requirements/spark.txt \
    setup/environment.sh setup/cuda.sh setup/horovod.sh setup/sok.sh setup/wheels.sh
	PYTHON=$(PYTHON) setup/environment.sh sok
	touch $@

sok: .venv-sok/.ready

# In the environment that is there, be it none.
sok-check:
	@export PATH="$(CURDIR)/.venv-sok/bin:$(CURDIR)/.venv/bin:$$PATH"; python3 -m tools.doctor

train: setup $(RAW_FILES)
	$(RUN) python3 -m preprocess $(RAW_FILES) --output $(DATA) --rules=$(RULES)
	$(RUN) python3 split_bin.py $(DATA)/train_data.bin $(DATA)/train
	$(RUN) python3 split_bin.py $(DATA)/test_data.bin $(DATA)/test
	$(RUN) horovodrun -np $(NP) ./hvd_wrapper.sh python3 main.py --flagfile=presets/$(PRESET).flags \
	    --data_dir=$(DATA) --run_dir=$(DATA)/run $(FLAGS)

build/demo/raw.tsv: | setup
	mkdir -p $(@D)
	$(RUN) python3 -m preprocess.synthetic $@ --rows 2000000 --seed 1

test: setup
	$(RUN) python3 -m pytest

faults: setup
	$(RUN) python3 -m tests.faults.suite $(FAULTS)

test-ingest: setup
	$(RUN) KILLS=10 python3 -m pytest tests/commands/test_ingest_resume.py
	$(RUN) python3 -m benchmarks.engines --rows $(ROWS) --files 8

lint: .venv/.ready
	export PATH="$(CURDIR)/.venv/bin:$$PATH"; ruff check . && ruff format --check . && mypy .

bench: interact_op
	$(RUN) for name in reader split preprocess step interact checkpoint; do echo "== $$name"; python3 -m benchmarks.$$name; done

interact_op: setup
	$(RUN) $(MAKE) --directory=interact_op

test-interact: interact_op
	$(RUN) EVERY_SHAPE=1 python3 -m pytest tests/unit/interact_op/test_interact_op.py
	$(MAKE) --directory=interact_op sanitize

bundle: interact_op
	$(RUN) python3 setup/bundle.py --output build/bundle $(BUNDLE)

clean:
	rm -rf build
