#!/usr/bin/env bash
# Sets up one Ubuntu machine with an NVIDIA GPU: MicroK8s, GPU sharing, Prometheus, Triton with its model, and access for gpusched.
# Why each command is what it is: docs/install.md. Run it as yourself, not with sudo; run it again after a failure: what is done
# is not done twice.
set -euo pipefail

# Every version, here and nowhere else. Images and charts of our own manifests carry theirs in manifests/.
MICROK8S_CHANNEL=1.35/stable
GPU_OPERATOR_VERSION=v25.10.0          # what the nvidia addon of that channel was made for
KUBE_PROMETHEUS_STACK_VERSION=76.4.1   # what the observability addon was made for
LOKI_STACK_VERSION=2.10.2
KEDA_VERSION=2.18.1
UBUNTU_VERSION=24.04
MIN_DRIVER=560                         # Triton 24.10 on a GPU that is no data-centre one
MIN_DISK_GIB=60                        # Triton's image alone unpacks to about 20
MIN_RAM_GIB=15

STEPS=(check docker microk8s access addons metallb monitoring gpu sharing keda python model service kubeconfig)
ONLY_WHERE_ASKED=(docker metallb keda)
declare -A WHAT=(
  [check]="look at the machine; change nothing"
  [docker]="Docker, which MicroK8s does not need (--with docker)"
  [microk8s]="MicroK8s $MICROK8S_CHANNEL by snap, updates held"
  [access]="you in the group microk8s"
  [addons]="dns, rbac, hostpath-storage, metrics-server, helm3"
  [metallb]="addresses for Services of type LoadBalancer (--with metallb --metallb-range A-B)"
  [monitoring]="Prometheus: the observability addon"
  [gpu]="NVIDIA's device plugin and DCGM: the nvidia addon, on the host's driver"
  [sharing]="how replicas share the GPU (--sharing)"
  [keda]="KEDA $KEDA_VERSION (--with keda), instead of prometheus-adapter"
  [python]="gpusched itself in .venv"
  [model]="MobileNetV4 as ONNX, in /var/lib/gpusched/models"
  [service]="Triton, RBAC, policies, monitors: kubectl apply -k"
  [kubeconfig]="a kubeconfig with the Role of manifests/base and no more"
)

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
STATE_DIR=${GPUSCHED_STATE_DIR:-/var/lib/gpusched}      # ours: models/, owned/ (what this script brought)
OS_RELEASE=${GPUSCHED_OS_RELEASE:-/etc/os-release}
MEMINFO=${GPUSCHED_MEMINFO:-/proc/meminfo}
PATIENCE_S=${GPUSCHED_PATIENCE_S:-900}                  # for things that download gigabytes
PAUSE_S=${GPUSCHED_PAUSE_S:-5}
ADDONS=(dns rbac hostpath-storage metrics-server helm3)
GPU_NAMESPACE=gpu-operator-resources                    # the nvidia addon's
MON_NAMESPACE=observability

DRY_RUN='' UNINSTALL='' SHARING=time-slicing METALLB_RANGE='' LOG='' STEP='' PROBLEMS=0
ONLY=() SKIP=() WITH=()
ME='' SESSION_GROUPS='' # asked once, in main

say() { printf '%s\n' "$*"; [[ -z $LOG ]] || printf '%s\n' "$*" >>"$LOG"; }
die() { # what, cure
  say "install.sh${STEP:+, step $STEP}: $1" >&2
  say "  Cure: $2" >&2
  [[ -z $LOG ]] || say "  Log: $LOG" >&2
  exit 2
}
has() { command -v "$1" >/dev/null 2>&1; }
contains() { local x=$1 y; shift; for y in "$@"; do [[ $x == "$y" ]] && return 0; done; return 1; }

# --- Commands. run, as_root and mk change things: a dry run prints them. ask and ask_mk only read: they are run always. --------
run() {
  local line; printf -v line '%q ' "$@"
  say "+ ${line% }"
  [[ -z $DRY_RUN ]] || return 0
  if "$@" </dev/null 2>&1 | tee -a "$LOG"; then return 0; fi
  die "the command above failed" "read what it says, mend that, and run install.sh again: it goes on from here."
}
as_root() { if [[ $ME == 0 ]]; then run "$@"; else run sudo "$@"; fi; }
# A new group holds from the next login on. newgrp would start a shell and wait for its end; sg runs one command.
in_group() {
  local line
  if [[ $ME == 0 || " $SESSION_GROUPS " == *" microk8s "* ]]; then "$@"; else printf -v line '%q ' "$@"; sg microk8s -c "${line% }"; fi
}
mk() {
  local line
  [[ -z $UNINSTALL || -n $DRY_RUN ]] || has microk8s || { say "  MicroK8s is gone, and this with it"; return 0; }
  if [[ $ME == 0 || " $SESSION_GROUPS " == *" microk8s "* ]]; then run microk8s "$@"
  else printf -v line '%q ' microk8s "$@"; run sg microk8s -c "${line% }"; fi
}
ask() { has "$1" && "$@" </dev/null 2>/dev/null; }
ask_mk() { has microk8s && in_group microk8s "$@" </dev/null 2>/dev/null; }
wait_for() { # what, the question that answers "yes" by its status
  local what=$1 until=$((SECONDS + PATIENCE_S)); shift
  say "# wait until $what (at most $PATIENCE_S s)"
  [[ -z $DRY_RUN ]] || return 0
  until "$@"; do
    ((SECONDS < until)) || return 1
    sleep "$PAUSE_S"
  done
}

# What this script brought, so that --uninstall takes nothing else away. Written before the thing is made.
owned() { [[ -e $STATE_DIR/owned/$1 ]]; }
own() { owned "$1" || as_root install -D -m 644 /dev/null "$STATE_DIR/owned/$1"; }
disown_it() { as_root rm -f "$STATE_DIR/owned/$1"; }

release() { # chart, field of `helm3 list`: namespace, name or status of what was installed from it, whatever its state
  ask_mk helm3 list --all --all-namespaces -o json | tr '{' '\n' | grep "\"chart\":\"$1-v\{0,1\}[0-9]" | sed -n "s/.*\"$2\":\"\([^\"]*\)\".*/\1/p" | head -n 1
}
deployed() { [[ $(release "$1" status) == deployed ]]; }
# What Helm broke off, neither an addon nor Helm itself installs over.
clear_broken() { # chart
  local state; state=$(release "$1" status) || true
  [[ -z $state || $state == deployed ]] || mk helm3 uninstall "$(release "$1" name)" --namespace "$(release "$1" namespace)"
}
rolled_out() { ask_mk kubectl -n "$1" rollout status "$2" --timeout=10s >/dev/null; }

# shellcheck source=manifests/check_machine.sh
source "$ROOT/manifests/check_machine.sh" # do_check

# --- steps: done_X says that there is nothing to do, do_X does it, undo_X takes it back ----------------------------------------------
done_docker() { has docker; }
do_docker() { own docker; as_root apt-get install -y docker.io; }
undo_docker() { as_root apt-get remove -y docker.io; }

done_microk8s() { ask snap list microk8s >/dev/null; }
do_microk8s() {
  own microk8s
  as_root snap install microk8s --classic --channel="$MICROK8S_CHANNEL"
  as_root snap refresh --hold microk8s # an update restarts the cluster, in the middle of a trial if it likes
  as_root microk8s status --wait-ready --timeout 600
}
undo_microk8s() { as_root snap remove --purge microk8s; }

done_access() { [[ $ME == 0 || " $(id -nG "$(id -un)") " == *" microk8s "* ]]; }
do_access() { own access; as_root usermod -a -G microk8s "$(id -un)"; }
undo_access() { as_root gpasswd -d "$(id -un)" microk8s; }

enabled() { [[ $(ask_mk status --addon "$1") == enabled ]]; }
done_addons() { local a; for a in "${ADDONS[@]}"; do enabled "$a" || return 1; done; }
do_addons() {
  local a; for a in "${ADDONS[@]}"; do
    if ! enabled "$a"; then own "addons-$a"; mk enable "$a"; mk status --wait-ready --timeout 600; fi
  done
}
undo_addons() {
  local a i
  for ((i = ${#ADDONS[@]} - 1; i >= 0; i--)); do
    a=${ADDONS[i]}
    ! owned "addons-$a" || { owned microk8s || mk disable "$a"; disown_it "addons-$a"; }
  done
}

# `microk8s status` calls metallb enabled even where it has no addresses, and `enable` can wait for ever.
done_metallb() { [[ -n $(ask_mk kubectl -n metallb-system get ipaddresspools.metallb.io -o name) ]]; }
do_metallb() {
  local attempt
  [[ $METALLB_RANGE =~ ^[0-9.]+-[0-9.]+$ ]] || die "no --metallb-range" "--metallb-range FIRST-LAST, free addresses of your network, say 192.168.1.240-192.168.1.249."
  own metallb
  for attempt in 1 2 3; do
    say "+ timeout 300 microk8s enable metallb:$METALLB_RANGE # attempt $attempt of 3, where the one before made no address pool"
    [[ -z $DRY_RUN ]] || return 0
    in_group timeout --kill-after=10 300 microk8s enable "metallb:$METALLB_RANGE" </dev/null 2>&1 | tee -a "$LOG" || true
    ! done_metallb || return 0
    sleep "$PAUSE_S"
  done
  die "MetalLB has no address pool after 3 attempts" "microk8s kubectl -n metallb-system get pods; a firewall (ufw) or proxy that keeps the API server from its webhook is the usual reason."
}
undo_metallb() { mk disable metallb; }

done_monitoring() {
  local where; where=$(release kube-prometheus-stack namespace)
  [[ -z $where || $where == "$MON_NAMESPACE" ]] || die "there is a Prometheus stack already (namespace $where)" \
    "--skip monitoring, see docs/install.md for its values, and tell trials where it is: cluster.prometheus=URL."
  deployed kube-prometheus-stack
}
do_monitoring() {
  clear_broken kube-prometheus-stack
  own monitoring
  mk enable observability --without-tempo --loki-stack-version="$LOKI_STACK_VERSION" \
    --kube-prometheus-stack-version="$KUBE_PROMETHEUS_STACK_VERSION" \
    --kube-prometheus-stack-values="$ROOT/manifests/values/observability.yaml"
  wait_for "Prometheus runs" rolled_out "$MON_NAMESPACE" statefulset/prometheus-kube-prom-stack-kube-prome-prometheus ||
    die "Prometheus does not come up" "microk8s kubectl -n $MON_NAMESPACE get pods,events"
}
undo_monitoring() { # not by the addon's own script: that one stops where there is no Tempo
  local chart name; for chart in kube-prometheus-stack loki-stack; do
    name=$(release "$chart" name) || true
    [[ -z $name ]] || mk helm3 uninstall "$name" --namespace "$MON_NAMESPACE"
  done
  mk kubectl -n kube-system delete service kube-prom-stack-kube-prome-kubelet --ignore-not-found # the operator leaves it behind
  mk kubectl delete namespace "$MON_NAMESPACE" --ignore-not-found
}

# The addon or the chart, never both: two GPU Operators fight over one node's containerd and device plugin.
plugin_runs() {
  [[ -n $(ask_mk kubectl get nodes -l nvidia.com/gpu.present=true -o name) ]] && rolled_out "$GPU_NAMESPACE" daemonset/nvidia-device-plugin-daemonset
}
done_gpu() {
  local where; where=$(release gpu-operator namespace)
  [[ -z $where || $where == "$GPU_NAMESPACE" ]] || die "a GPU Operator that its chart installed is there already (namespace $where)" \
    "microk8s helm3 uninstall $(release gpu-operator name) -n $where; or keep it, and give it manifests/values/gpu-operator.yaml and --skip gpu,sharing."
  deployed gpu-operator
}
do_gpu() {
  clear_broken gpu-operator
  own gpu
  mk enable nvidia --gpu-operator-driver=host --gpu-operator-version="$GPU_OPERATOR_VERSION" \
    --gpu-operator-values="$ROOT/manifests/values/gpu-operator.yaml"
  # The addon ends well even where Helm has failed.
  wait_for "the device plugin runs" plugin_runs ||
    die "the GPU Operator does not come up" "microk8s helm3 status gpu-operator -n $GPU_NAMESPACE; microk8s kubectl -n $GPU_NAMESPACE get pods; then microk8s disable nvidia and run install.sh again."
}
undo_gpu() { mk disable nvidia; }

done_sharing() { [[ $(ask_mk kubectl get nodes -l nvidia.com/gpu.present=true -o 'jsonpath={.items[*].metadata.labels.nvidia\.com/gpu\.sharing-strategy}' | tr ' ' '\n' | sort -u) == "$SHARING" ]]; }
do_sharing() {
  own sharing
  # Replicas of before would keep the GPU while the new ones wait for it.
  if [[ -n $(ask_mk kubectl -n gpusched get deployment triton -o name) ]]; then
    mk kubectl -n gpusched scale deployment/triton --replicas=0
    mk kubectl -n gpusched wait --for=delete pod -l app.kubernetes.io/name=triton --timeout=120s
  fi
  mk kubectl label nodes -l nvidia.com/gpu.present=true "nvidia.com/device-plugin.config=$SHARING" --overwrite
  wait_for "the node says that it shares by $SHARING" done_sharing ||
    die "the device plugin did not take the configuration $SHARING" "microk8s kubectl -n $GPU_NAMESPACE logs daemonset/nvidia-device-plugin-daemonset --all-containers"
}
undo_sharing() { mk kubectl label nodes -l nvidia.com/gpu.present=true nvidia.com/device-plugin.config-; }

done_keda() { deployed keda; }
do_keda() {
  clear_broken keda
  own keda
  ! owned service-prometheus-adapter || remove overlays/prometheus-adapter # Helm takes over no APIService of another
  mk helm3 upgrade --install keda keda --repo https://kedacore.github.io/charts --version "$KEDA_VERSION" \
    --namespace keda --create-namespace --wait --timeout 10m
}
undo_keda() { mk helm3 uninstall keda --namespace keda; }

done_python() { [[ -e $ROOT/.venv/.installed && ! $ROOT/pyproject.toml -nt $ROOT/.venv/.installed ]]; }
do_python() {
  as_root apt-get install -y make python3-venv
  run make -C "$ROOT" setup
}

done_model() { [[ -e $STATE_DIR/models/mobilenetv4/config.pbtxt ]]; }
do_model() {
  own model
  run "$ROOT/.venv/bin/pip" install --quiet -c "$ROOT/constraints.txt" -e "${ROOT}[model]"
  run "$ROOT/.venv/bin/python" "$ROOT/manifests/model/export.py" --out "$ROOT/outputs/models" --force
  as_root install -d -m 755 "$STATE_DIR" "$STATE_DIR/models" # Triton reads it as another user, whatever the umask
  as_root cp -r --preserve=mode "$ROOT/outputs/models/mobilenetv4" "$STATE_DIR/models/"
}
undo_model() { as_root rm -rf "$STATE_DIR/models/mobilenetv4"; }

gpus() { ask_mk kubectl get nodes -o 'jsonpath={.items[*].status.allocatable.nvidia\.com/gpu}'; }
kustomizations() { # in the order to apply
  if contains gpu "${SKIP[@]}" || { ! selected gpu && [[ -z $(gpus) ]]; }; then echo overlays/cpu
  elif [[ $SHARING == none ]]; then echo overlays/microk8s
  else echo "overlays/$SHARING"; fi
  # They belong beside the addon's Prometheus; what another one needs is for its owner to apply (docs/install.md).
  ! contains monitoring "${SKIP[@]}" || return 0
  echo monitoring
  contains keda "${WITH[@]}" || echo overlays/prometheus-adapter
}
# A cluster has one server of each metrics API, and KEDA registers under the very name of ours.
foreign_metrics() {
  ask_mk kubectl get apiservices -o custom-columns=:.metadata.name,:.spec.service.namespace |
    awk '/^v1beta1\.(custom|external)\.metrics\.k8s\.io/ && $2 != "gpusched-metrics" { print $1, "of", $2; n++ } END { exit !n }'
}
done_service() { return 1; } # applying again is how a change gets there
do_service() {
  local folder taken folders; folders=$(kustomizations)
  if [[ $folders == *prometheus-adapter* ]] && taken=$(foreign_metrics); then
    die "a metrics API has another server: ${taken//$'\n'/, }" \
      "--with keda where that is KEDA, which then serves the metric; else remove it, or apply manifests/ yourself (docs/install.md)."
  fi
  own service
  # The volume of a namespace that was deleted still belongs to that one's claim.
  [[ $(ask_mk kubectl get pv gpusched-models -o 'jsonpath={.status.phase}') != Released ]] ||
    mk kubectl patch pv gpusched-models --type=json -p '[{"op": "remove", "path": "/spec/claimRef/uid"}]'
  for folder in $folders; do own "service-${folder##*/}"; mk kubectl apply -k "$ROOT/manifests/$folder"; done
  [[ $(ask_mk kubectl -n gpusched get deployment triton -o 'jsonpath={.spec.replicas}') != 0 ]] || mk kubectl -n gpusched scale deployment/triton --replicas=1
  wait_for "Triton is ready" rolled_out gpusched deployment/triton ||
    die "Triton does not become ready" "microk8s kubectl -n gpusched describe pods; the first pull of its image takes long: run install.sh --only service again."
}
remove() { # a kustomization; monitoring's ServiceMonitor goes with its namespace: by its file kubectl would fail where that kind is gone
  if [[ $1 == monitoring ]]; then mk kubectl -n "$MON_NAMESPACE" delete role,rolebinding -l app.kubernetes.io/part-of=gpusched
  else mk kubectl delete --ignore-not-found -k "$ROOT/manifests/$1"; fi
  disown_it "service-${1##*/}"
}
undo_service() {
  local folder; for folder in overlays/prometheus-adapter monitoring overlays/{mps,time-slicing,microk8s,cpu}; do
    ! owned "service-${folder##*/}" || remove "$folder"; done
}
KUBECONFIG_FILE=$HOME/.kube/gpusched.config
done_kubeconfig() { # still good, and for this very account
  [[ -n $(find "$KUBECONFIG_FILE" -mtime -29 2>/dev/null) ]] && ask_mk kubectl --kubeconfig "$KUBECONFIG_FILE" -n gpusched get deployment triton -o name >/dev/null
}
do_kubeconfig() {
  local ca token
  own kubeconfig
  say "+ write $KUBECONFIG_FILE (mode 600; a token of 30 days, from: microk8s kubectl -n gpusched create token gpusched)"
  [[ -z $DRY_RUN ]] || return 0
  token=$(ask_mk kubectl -n gpusched create token gpusched --duration=720h) || die "no token for the service account gpusched" "install.sh --only service,kubeconfig"
  ca=$(ask_mk config | sed -n 's/.*certificate-authority-data: *//p' | head -n 1)
  mkdir -p "$HOME/.kube"
  (umask 077 && cat >"$KUBECONFIG_FILE") <<CONFIG
apiVersion: v1
kind: Config
clusters: [{name: microk8s, cluster: {server: "https://127.0.0.1:16443", certificate-authority-data: "$ca"}}]
users: [{name: gpusched, user: {token: "$token"}}]
contexts: [{name: gpusched, context: {cluster: microk8s, user: gpusched, namespace: gpusched}}]
current-context: gpusched
CONFIG
}
undo_kubeconfig() { run rm -f "$KUBECONFIG_FILE"; }

# --- which, in which order ------------------------------------------------------------------------------------------------------------
selected() {
  ! contains "$1" "${SKIP[@]}" || return 1
  [[ $1 != check ]] || return 0
  if ((${#ONLY[@]})); then contains "$1" "${ONLY[@]}"; else ! contains "$1" "${ONLY_WHERE_ASKED[@]}" || contains "$1" "${WITH[@]}"; fi
}
set_up() {
  for STEP in "${STEPS[@]}"; do
    selected "$STEP" || continue
    say "== $STEP: ${WHAT[$STEP]}"
    if [[ $STEP != check ]] && "done_$STEP"; then say "  is there"; else "do_$STEP"; fi
  done
  STEP=''
  [[ -n $DRY_RUN ]] || say "Done. Next: export KUBECONFIG=$KUBECONFIG_FILE; . .venv/bin/activate; python run.py job=doctor cluster=microk8s"
}
take_back() {
  local i
  for ((i = ${#STEPS[@]} - 1; i >= 0; i--)); do
    STEP=${STEPS[i]}
    if ! has_undo "$STEP" || ! wanted_away "$STEP"; then continue; fi
    say "== take back $STEP"
    "undo_$STEP"
    [[ $STEP == addons ]] || disown_it "$STEP"
  done
  STEP=''
  say "Left alone: the driver, .venv, outputs/, mlruns/, and whatever this script did not bring."
}
has_undo() { declare -F "undo_$1" >/dev/null; }
wanted_away() {
  ! contains "$1" "${SKIP[@]}" || return 1
  ((${#ONLY[@]} == 0)) || contains "$1" "${ONLY[@]}" || return 1
  if [[ $1 == addons ]]; then compgen -G "$STATE_DIR/owned/addons-*" >/dev/null; else owned "$1"; fi
}
usage() {
  say "usage: ./install.sh [--dry-run] [--uninstall] [--only STEPS] [--skip STEPS] [--with STEPS] [--list]"
  say "                    [--sharing time-slicing|mps|none] [--metallb-range FIRST-LAST] [--log FILE]"
  say "STEPS are names with commas between; --with adds those that are left out otherwise:"
  list
}
list() { local s; for s in "${STEPS[@]}"; do say "  $(printf '%-11s' "$s") ${WHAT[$s]}"; done; }
names() { # check and print the names of a comma list, one a line
  local s; for s in ${1//,/ }; do
    contains "$s" "${STEPS[@]}" || die "there is no step '$s'" "one of: ${STEPS[*]}"
    echo "$s"
  done
}
options() {
  local found
  while (($#)); do
    case $1 in
      --dry-run) DRY_RUN=yes ;;
      --uninstall) UNINSTALL=yes ;;
      --list) list; exit 0 ;;
      -h | --help) usage; exit 0 ;;
      --only | --skip | --with | --sharing | --metallb-range | --log)
        (($# > 1)) || die "$1 needs a value" "./install.sh --help"
        case $1 in
          --only) found=$(names "$2") || exit 2; mapfile -t -O "${#ONLY[@]}" ONLY <<<"$found" ;;
          --skip) found=$(names "$2") || exit 2; mapfile -t -O "${#SKIP[@]}" SKIP <<<"$found" ;;
          --with) found=$(names "$2") || exit 2; mapfile -t -O "${#WITH[@]}" WITH <<<"$found" ;;
          --sharing) SHARING=$2; contains "$2" time-slicing mps none || die "--sharing $2" "one of: time-slicing mps none" ;;
          --metallb-range) METALLB_RANGE=$2 ;;
          --log) LOG=$2 ;;
        esac
        shift ;;
      *) die "what is '$1'?" "./install.sh --help" ;;
    esac
    shift
  done
}
main() {
  options "$@"
  ME=$(id -u) SESSION_GROUPS=$(id -nG)
  if [[ -n $DRY_RUN ]]; then LOG=''; say "# Dry run: what would be run here, and nothing is."
  else
    LOG=${LOG:-${XDG_STATE_HOME:-$HOME/.local/state}/gpusched/install.log}
    mkdir -p "$(dirname "$LOG")"
    say "# $(date -Is) install.sh $*"
  fi
  if [[ -n $UNINSTALL ]]; then take_back; else set_up; fi
}
main "$@"
