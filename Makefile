# make train              trains a DLRM on synthetic logs, from raw text to its AUC target, on two ranks
# make train RAW=log.tsv  the same on your own logs, in Criteo's format (RAW="a.gz b.gz": several)
# make serve              serves the model of `make train`, asks it over HTTP and gRPC, and stops
# make data               the part of `make train` before the training: its split folders
# make mlperf             MLPerf: trains the demo RUNS times; MLPerf's checkers judge the logs; the score
# make dlrm-v3            DLRMv3: generates a small stream, trains on it, and runs MLPerf's inference benchmark
# make test               runs the tests of single modules and of the source, on JOBS cores: some minutes
# make test-runs          runs those of whole commands, several ranks and faults: about 20 minutes on two
# make test-all           runs all tests, the slow ones too
# make lint               checks style, types, formatting and spelling
# make bench              repeats the measurements of benchmarks/README.md
# make bench-peers        compares the training step with other systems', in an environment of their own
# make stability          trains the demo with SEEDS seeds in float32, bfloat16 and float16
# make coverage           measures which lines the tests reach
# make interact_op        builds the fused interaction of --custom_interact anew; `make setup` has built it
# make cpu_ops            builds the fused MLP of --custom_mlp, and other operations for CPUs, likewise
# make hstu_op            builds the fused operations of DLRMv3's model
# make serving_core       builds the scorer of python3 -m serving
# make serve-setup        installs Triton's server and client, and LoadGen, into the environment
# make operate-setup      installs what MLPerf's log, MLflow and the pages of a profile need
# make mpi-setup          builds the environment's Horovod with Open MPI, so that mpirun can start the ranks
# make setup              creates the environment .venv and builds the fused operations; every target
#                         that needs these does so too
# make clean              removes build/
#
# make sok                creates .venv-sok: TensorFlow 2.14 with SparseOperationKit, for GPUs
# make sok-check          prints what the environment has for GPUs, and what is missing
# make bundle             packs the environment and the project for hosts without internet
#
# Longer tests:
# make faults             injects every fault on 1, 2 and 3 ranks at random moments
# make test-ingest        kills each ingest engine ten times, then compares both on every rule set
# make test-interact      tests the fused interaction at every shape, and under the sanitizers
# make test-cpu-ops       tests the fused MLP, also under the sanitizers
# make test-hstu          tests the fused operations of DLRMv3, also under the sanitizers
#
# variable  default  used by      meaning
# PROFILE   default  all          PROFILE=sok uses .venv-sok instead of .venv (not for lint)
# PYTHON    python3  setup, sok   the interpreter that creates the environment
# RAW       -        train        raw log files; none: synthetic logs
# RULES     dlrm     train        how ids are made: dlrm, mlperf or spark
# NP        2        train        number of ranks
# JOBS      2        test*        tests that run at the same time
# TESTS     -        test*        more options of pytest, such as TESTS="tests/unit -k checksum"
# FLAGS     -        train        more flags of main.py, such as FLAGS="--xla --epochs=1"
# RUNS      5        mlperf       number of runs
# SEEDS     16       stability    number of seeds
# FAULTS    -        faults       options of the fault tests, such as FAULTS="--repeat 5"
# PEERS     -        bench-peers  options of benchmarks.peers, such as PEERS="--shape demo"
# ROWS      1000000  test-ingest  rows of the log that both engines read
# BUNDLE    -        bundle       options of setup.bundle, such as BUNDLE="--part_mb 500"
#
# Other commands, run in the environment: main.py, split_bin.py; with -m: preprocess,
# preprocess.synthetic, preprocess.verify, launch, dlrm.checkpoint, tools.doctor, tools.gpu_check,
# benchmarks.NAME. Each explains itself with --help.

VENV_default := .venv
VENV_sok := .venv-sok
BENCHMARKS := reader split preprocess step interact checkpoint

PYTHON ?= python3
JOBS ?= 2
TESTS ?=
NP ?= 2
RUNS ?= 5
SEEDS ?= 16
FLAGS ?=
FAULTS ?=
PEERS ?=
BUNDLE ?=
PROFILE ?= default
VENV := $(or $(VENV_$(PROFILE)),$(error expected PROFILE=default or PROFILE=sok, found $(PROFILE)))
RUN := export PATH="$(CURDIR)/$(VENV)/bin:$$PATH";
FUSED := build/.fused-$(PROFILE)
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

.PHONY: setup help data train mlperf serve dlrm-v3 serve-setup operate-setup mpi-setup serving_core \
    interact_op cpu_ops hstu_op test test-runs test-all stability coverage test-ingest test-interact test-cpu-ops \
    test-hstu faults lint bench bench-peers sok sok-check bundle clean
.DELETE_ON_ERROR:

setup: $(VENV)/.ready $(FUSED)

# The operations of --custom_interact and --custom_mlp, which all presets set.
$(FUSED): $(wildcard interact_op/* dlrm/cpu_ops/*) | $(VENV)/.ready
	$(RUN) $(MAKE) --directory=interact_op
	$(RUN) $(MAKE) --directory=dlrm/cpu_ops
	touch $@

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

.venv/.ready: requirements.txt requirements/dev.txt requirements/horovod.txt \
    requirements/spark.txt setup/environment.sh setup/horovod.sh setup/wheels.sh
	PYTHON=$(PYTHON) setup/environment.sh
	touch $@

.venv-sok/.ready: requirements/sok.txt requirements/sok-dev.txt requirements/horovod.txt requirements/spark.txt \
    setup/environment.sh setup/cuda.sh setup/horovod.sh setup/sok.sh setup/wheels.sh
	PYTHON=$(PYTHON) setup/environment.sh sok
	touch $@

sok: .venv-sok/.ready
	$(MAKE) setup PROFILE=sok

# What the server and LoadGen need in addition; nothing else does.
serve-setup: $(VENV)/.serving serving_core

$(VENV)/.serving: requirements/serving.txt setup/serving.sh | setup
	setup/serving.sh $(VENV)
	touch $@

operate-setup: $(VENV)/.operating

$(VENV)/.operating: requirements/operate.txt | setup
	$(VENV)/bin/python -m pip install --quiet --requirement $<
	touch $@

# Horovod for the same environment, with MPI beside what it had.
mpi-setup: setup
	$(if $(filter sok,$(PROFILE)),HOROVOD_GPU_OPERATIONS=NCCL) HOROVOD_WITH_MPI=1 setup/horovod.sh $(VENV)

# Runs in whichever environment exists, or in the system's Python.
sok-check:
	@export PATH="$(CURDIR)/.venv-sok/bin:$(CURDIR)/.venv/bin:$$PATH"; python3 -m tools.doctor

data: setup $(RAW_FILES)
	$(RUN) python3 -m preprocess $(RAW_FILES) --output $(DATA) --rules=$(RULES)
	$(RUN) python3 split_bin.py $(DATA)/train_data.bin $(DATA)/train
	$(RUN) python3 split_bin.py $(DATA)/test_data.bin $(DATA)/test

train: data
	rm -rf $(DATA)/checkpoints
	$(RUN) python3 -m launch -np $(NP) -- main.py --flagfile=presets/$(PRESET).flags \
	    --data_dir=$(DATA) --run_dir=$(DATA)/run --checkpoint_dir=$(DATA)/checkpoints $(FLAGS)

# Runs that are done are kept: remove build/mlperf to measure again.
mlperf: data operate-setup
	$(RUN) python3 -m tools.mlperf run build/mlperf --runs $(RUNS) -np $(NP) \
	    --notes "synthetic logs and a small model: no submission" -- \
	    main.py --flagfile=presets/mlperf_demo.flags --data_dir=$(DATA) $(FLAGS)

# The checkpoint is that of `make train`, which runs first if there is none.
serve: serve-setup | $(DATA)/checkpoints
	$(RUN) python3 -m tools.serve_demo $(DATA)/checkpoints $(DATA) $(DATA)/serving

# What is in this folder already is kept if it has the same settings.
dlrm-v3: hstu_op serve-setup
	$(RUN) python3 -m tools.dlrm_v3_demo build/dlrm_v3 --ranks $(NP)

$(DATA)/checkpoints:
	$(MAKE) train

build/demo/raw.tsv: | setup
	mkdir -p $(@D)
	$(RUN) python3 -m preprocess.synthetic $@ --rows 2000000 --seed 1

# What depends on no package that differs is not tested twice; .ci/run says what that is.
SELECTED_default := not slow
SELECTED_sok := not slow and not one_profile
SELECTED = $(SELECTED_$(PROFILE))

# A file's tests share what they set up, so a file stays in one process. The long files come first.
PYTEST = python3 -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(TESTS)

# What they build is built before, as several processes would build it at the same time. Triton's
# server is there for x86-64 alone; elsewhere its tests are skipped.
NEEDED_default := setup hstu_op operate-setup $(if $(filter x86_64,$(shell uname -m)),serve-setup,serving_core)
NEEDED_sok := setup hstu_op serving_core

test: $(NEEDED_$(PROFILE))
	$(RUN) $(PYTEST) -m "not runs and $(SELECTED)"

test-runs: $(NEEDED_$(PROFILE))
	$(RUN) $(PYTEST) -m "runs and $(SELECTED)"

test-all: $(NEEDED_$(PROFILE))
	$(RUN) $(PYTEST)

coverage: $(NEEDED_$(PROFILE))
	$(RUN) $(PYTEST) --cov --cov-report=term

faults: setup
	$(RUN) python3 -m tests.faults.suite $(FAULTS)

test-ingest: setup
	$(RUN) KILLS=10 python3 -m pytest tests/commands/test_ingest_resume.py
	$(RUN) python3 -m benchmarks.engines --rows $(ROWS) --files 8

lint: .venv/.ready
	export PATH="$(CURDIR)/.venv/bin:$$PATH"; \
	    ruff check . && ruff format --check . && mypy . && \
	    shellcheck -x $$(git ls-files '*.sh' '*.sub') .ci/run && \
	    hadolint launch/docker/Dockerfile && \
	    clang-format --dry-run --Werror $$(git ls-files '*.cc' '*.h' '*.cu' '*.cuh') && \
	    codespell $$(git ls-files ':!LICENSE')

# Stops at the first benchmark that fails.
bench: setup
	$(RUN) set -e; for name in $(BENCHMARKS); do echo "== $$name"; python3 -m benchmarks.$$name; done

bench-peers: setup .venv-peers/.ready
	$(RUN) python3 -m benchmarks.peers $(PEERS)

.venv-peers/.ready: requirements/peers.txt requirements/peers-torchrec.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --requirement requirements/peers.txt
	.venv-peers/bin/python -m pip install --quiet --no-deps --requirement requirements/peers-torchrec.txt
	touch $@

# What is finished in build/stability already is kept.
stability: data
	$(RUN) python3 -m benchmarks.stability $(DATA) --seeds=$(SEEDS)

interact_op: $(VENV)/.ready
	$(RUN) $(MAKE) --directory=interact_op

cpu_ops: $(VENV)/.ready
	$(RUN) $(MAKE) --directory=dlrm/cpu_ops

test-cpu-ops: cpu_ops
	$(RUN) python3 -m pytest tests/unit/cpu_ops
	$(MAKE) --directory=dlrm/cpu_ops sanitize

test-interact: setup
	$(RUN) EVERY_SHAPE=1 python3 -m pytest tests/unit/interact_op/test_interact_op.py
	$(MAKE) --directory=interact_op sanitize

hstu_op: setup
	$(RUN) $(MAKE) --directory=dlrm_v3/hstu_op

test-hstu: hstu_op
	$(RUN) python3 -m pytest tests/unit/dlrm_v3/test_hstu_op*.py
	$(MAKE) --directory=dlrm_v3/hstu_op sanitize

# The scorer's kernels; they need a C++ compiler alone.
serving_core:
	$(MAKE) --directory=serving/core

bundle: setup hstu_op serving_core
	$(RUN) python3 -m setup.bundle --output build/bundle $(BUNDLE)

clean:
	rm -rf build
