# make experiment   the whole study: install, sweep, report      make test   the whole test suite
# make full         ten policies under eight loads, six under nine faults (an hour or more on two cores)
# make check        what a change must pass, two minutes         make bench  the numbers we claim
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
UI := MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(VENV)/bin/mlflow server --workers 1 --backend-store-uri sqlite:///mlruns/mlflow.db

TRITON := .venv-triton
TRITON_STAMP := $(TRITON)/.installed

# Python starts anew many times here: what it has compiled is kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: experiment full ablation shift randomised test check bench bench-check setup ui ray local gpu
experiment: $(STAMP)
	$(PY) run.py experiment=headline resume=true hydra/launcher=joblib
	$(PY) analyze.py --study headline
	@echo
	@echo "Report:    outputs/report/headline/index.html"
	@echo "MLflow UI: make ui, then http://127.0.0.1:5000/#/experiments"
	@echo "           (make ui runs: $(UI))"

# Twenty seeds: TRACES is the folder of the Azure traces (conf/load/azure_conv.yaml).
TRACES ?= traces
full: export GPUSCHED_TRACES := $(abspath $(TRACES))
full: $(STAMP)
	$(PY) run.py experiment=full resume=true hydra/launcher=joblib
	$(PY) run.py experiment=faults resume=true hydra/launcher=joblib
	$(PY) analyze.py --study full7 --filter "tags.fault = 'none'" --keep docs/results/full
	$(PY) analyze.py --study full7 --filter "tags.load LIKE 'periodic%'" --keep docs/results/faults

# What each part of PPO is worth: one row without any change, one for each part that is left out, and one without all the
# extras, since what does the work of another part is missed only together with it.
NO_EXTRAS := policy.encoder.peaks=[] policy.encoder.troughs=[] policy.training.critic_ahead=0 policy.training.critic_epochs=0
WITHOUT_HISTORY := policy.encoder.lags=[] policy.encoder.roughness=[] policy.encoder.peaks=[] policy.encoder.troughs=[]
ablation: export GPUSCHED_TRACES := $(abspath $(TRACES))
ablation: $(STAMP)
	set -e; for row in "" "$(WITHOUT_HISTORY)" policy.encoder.changes=false \
	  policy.encoder.roughness=[] 'policy.encoder.peaks=[] policy.encoder.troughs=[]' policy.training.critic_ahead=0 \
	  policy.training.critic_epochs=0 '$(NO_EXTRAS)' policy.train_load.open_share=0 policy.thrift=0; do \
	  $(PY) run.py experiment=ablation resume=true hydra/launcher=joblib $$row; done
	$(PY) analyze.py --study ablation --all-pairs --baseline ppo --candidate 'ppo[training.critic_ahead=0]' --keep docs/results/ablation

# PPO trained on one load and tested on all.
shift: export GPUSCHED_TRACES := $(abspath $(TRACES))
shift: $(STAMP)
	$(PY) run.py experiment=shift resume=true hydra/launcher=joblib
	$(PY) analyze.py --study shift --baseline 'ppo[train_load=assorted]' --candidate 'ppo[train_load=low]' --keep docs/results/shift

# PPO and the strongest rule, each learnt on the service profile and on services drawn around it.
randomised: $(STAMP)
	$(PY) run.py experiment=randomised resume=true hydra/launcher=joblib
	$(PY) analyze.py --study randomised --all-pairs --baseline 'ppo[train_fault=none]' --candidate 'ppo[train_fault=service_shift]' --keep docs/results/randomised

setup: $(STAMP)

# Anything that changes what must be installed makes the stamp old; an interrupted installation leaves none.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "gpusched needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12 ..." >&2; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "Cannot make a virtual environment. On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 2; }
	$(PY) -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# Real Triton for cluster=local, in an environment of its own: its Python backend needs numpy < 2.
local: $(STAMP) $(TRITON_STAMP)

$(TRITON_STAMP): gpusched/cluster/local/requirements.txt gpusched/cluster/local/network.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || { \
	  echo "Triton's Python backend needs Python 3.11 or 3.12, and $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make local PYTHON=python3.12" >&2; exit 2; }
	@test -x $(TRITON)/bin/python || $(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps -r gpusched/cluster/local/requirements.txt
	$(TRITON)/bin/python gpusched/cluster/local/network.py $(TRITON)/mobilenetv4_conv_small_random.onnx
	@touch $@

# What `python run.py job=gpu` measures a GPU with, in an environment of its own.
GPU := .venv-gpu
gpu: $(STAMP) gpusched/cluster/local/network.py
	@test -x $(GPU)/bin/python || $(PYTHON) -m venv $(GPU)
	$(GPU)/bin/python -m pip install --disable-pip-version-check --quiet 'onnxruntime-gpu[cuda,cudnn]>=1.20' onnx
	$(GPU)/bin/python gpusched/cluster/local/network.py $(GPU)/mobilenetv4_conv_small_random.onnx

# What measures wall time has the machine to itself. What fails of it is asked once more, since another program may have
# been in its way; what fails twice has failed.
test: $(STAMP)
	$(PY) -m pytest -n 2 --dist loadfile -q -m "not wall and not local"
	$(PY) -m pytest -q -m "wall or local" || $(PY) -m pytest -q -m "wall or local" --last-failed --last-failed-no-failures none

check: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PY) -m pytest -n 2 --dist loadfile -q -m "not slow and not gpu and not cluster and not local"

bench: $(STAMP)
	$(PY) benchmarks/engine.py
	$(PY) benchmarks/scale.py
	$(PY) benchmarks/fleet.py
	$(PY) benchmarks/cold.py
	$(PY) benchmarks/sweep.py
	$(PY) benchmarks/report.py
	$(PY) -m pip install --disable-pip-version-check --quiet --no-deps 'stable-baselines3>=2.7'
	$(PY) benchmarks/training.py

bench-check: $(STAMP)
	$(PY) benchmarks/check.py

# The launcher's package asks for an AWS client whose python-dateutil the Kubernetes client does not allow; it is
# only needed to start machines there.
ray: $(STAMP)
	$(PY) -m pip install --disable-pip-version-check --quiet -c constraints.txt 'ray>=2.40'
	$(PY) -m pip install --disable-pip-version-check --quiet --no-deps 'hydra-ray-launcher==1.2.2'

ui: $(STAMP)
	$(UI)
