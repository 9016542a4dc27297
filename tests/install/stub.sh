#!/usr/bin/env bash
# Stands in for every command that could change a machine: writes down what it was asked and keeps a little world in $WORLD.
# A call it does not know ends with 97, so nothing new goes unnoticed.
set -u
name=${0##*/}
as=''
[[ -z ${VIA_SUDO:-} ]] || as='root: '
[[ -z ${VIA_SG:-} ]] || as='group: '
record() { printf '%s%s\n' "$as" "$name${*:+ $*}" >>"$WORLD/calls"; }
asked() { printf '%s%s\n' "$as" "$name${*:+ $*}" >>"$WORLD/questions"; }
unknown() { printf '%s\n' "$name $*" >>"$WORLD/unknown"; exit 97; }
flag() { [[ -e $WORLD/$1 ]]; }
give() { cat "$WORLD/$1" 2>/dev/null; }
fails() { # once for each line of the file, where it is there
  [[ -s $WORLD/fails-$1 ]] || return 1
  sed -i 1d "$WORLD/fails-$1"
}

releases() { # what `helm3 list -o json` prints
  local comma='' n ns status chart
  printf '['
  while read -r n ns status chart; do
    printf '%s{"name":"%s","namespace":"%s","revision":"1","updated":"2026-01-01 00:00:00.0 +0000 UTC","status":"%s","chart":"%s"}' "$comma" "$n" "$ns" "$status" "$chart"
    comma=','
  done < <(cat "$WORLD"/release-* 2>/dev/null)
  printf ']\n'
}

microk8s() {
  case "$*" in
    "status --addon "*) asked "$@"; if flag "addon-$3"; then echo enabled; else echo disabled; fi ;;
    "status --wait-ready"*) record "$@" ;;
    "enable metallb:"*) record "$@"; fails metallb || touch "$WORLD/pool" ;;
    "enable nvidia"*) record "$@"; if fails nvidia; then exit 0; fi; echo "gpu-operator gpu-operator-resources deployed gpu-operator-v25.10.0" >"$WORLD/release-gpu" ;;
    "enable observability"*) record "$@"; if fails observability; then echo "chart not found"; exit 1; fi; echo "kube-prom-stack observability deployed kube-prometheus-stack-76.4.1" >"$WORLD/release-prom" ;;
    "enable "*) record "$@"; if fails "$2"; then echo "no"; exit 1; fi; touch "$WORLD/addon-$2" ;;
    "disable nvidia") record "$@"; rm -f "$WORLD/release-gpu" ;;
    "disable metallb") record "$@"; rm -f "$WORLD/pool" ;;
    "disable "*) record "$@"; rm -f "$WORLD/addon-$2" ;;
    "helm3 list --all --all-namespaces -o json") asked "$@"; releases ;;
    "helm3 upgrade --install keda"*) record "$@"; echo "keda keda deployed keda-2.18.1" >"$WORLD/release-keda" ;;
    "helm3 uninstall "*) record "$@"; local file; for file in "$WORLD"/release-*; do ! grep -qs "^$3 " "$file" || rm -f "$file"; done ;;
    config) asked "$@"; printf 'clusters:\n- cluster:\n    certificate-authority-data: Q0EK\n    server: https://10.0.0.5:16443\n' ;;
    "kubectl -n metallb-system get ipaddresspools.metallb.io -o name") asked "$@"; ! flag pool || echo ipaddresspool.metallb.io/default ;;
    "kubectl -n "*" rollout status "*) asked "$@"; if flag "never-${6##*/}"; then exit 1; fi ;;
    "kubectl get nodes "*sharing-strategy*) asked "$@"; give sharing ;;
    "kubectl get nodes -l nvidia.com/gpu.present=true -o name") asked "$@"; ! flag gpu || echo node/tester ;;
    "kubectl get nodes "*allocatable*) asked "$@"; give gpus ;;
    "kubectl label nodes "*config-) record "$@"; rm -f "$WORLD/sharing" ;;
    "kubectl label nodes "*) record "$@"; local word; for word in "$@"; do case $word in *device-plugin.config=*) printf '%s' "${word#*=}" >"$WORLD/sharing" ;; esac; done ;;
    "kubectl -n gpusched get deployment triton -o name") asked "$@"; ! flag deployment || echo deployment.apps/triton ;;
    "kubectl -n gpusched get deployment triton -o jsonpath={.spec.replicas}") asked "$@"; give replicas ;;
    "kubectl -n gpusched scale deployment/triton --replicas="*) record "$@"; printf '%s' "${6##*=}" >"$WORLD/replicas" ;;
    "kubectl -n gpusched wait --for=delete pod "*) record "$@" ;;
    "kubectl --kubeconfig "*" -n gpusched get deployment triton -o name") asked "$@"; ! flag unauthorized ;;
    "kubectl get pv gpusched-models -o jsonpath={.status.phase}") asked "$@"; give volume ;;
    "kubectl patch pv gpusched-models "*) record "$@"; echo Available >"$WORLD/volume" ;;
    "kubectl apply -k "*) record "$@"; if fails apply; then echo "no matches for kind"; exit 1; fi ;;
    "kubectl get apiservices -o custom-columns=:.metadata.name,:.spec.service.namespace") asked "$@"; give apiservices ;;
    "kubectl delete "* | "kubectl -n observability delete "* | "kubectl -n kube-system delete "*) record "$@" ;;
    "kubectl -n gpusched create token gpusched --duration=720h") asked "$@"; echo a-very-secret-token ;;
    *) unknown "$@" ;;
  esac
}

case $name in
  sudo)
    if [[ $* == -v ]]; then asked "$@"; flag no-sudo && exit 1; exit 0; fi
    VIA_SUDO=yes exec "$@" ;;
  sg) # group, -c, words
    [[ $1 == microk8s && $2 == -c ]] || unknown "$@"
    flag group || exit 1
    VIA_SG=yes exec bash -c "$3" ;;
  timeout) record "$1" "$2"; shift 2; exec "$@" ;;
  id)
    case "$*" in
      -u) give uid || echo 1000 ;;
      -un) echo tester ;;
      -nG) echo tester sudo ;;
      "-nG tester") if flag group; then echo tester sudo microk8s; else echo tester sudo; fi ;;
      *) unknown "$@" ;;
    esac ;;
  uname) give machine || echo x86_64 ;;
  df) printf 'Filesystem 1024-blocks Used Available Capacity Mounted\n/dev/x 1 1 %s 1%% /\n' "$(($(give disk || echo 200) * 1048576))" ;;
  lspci) asked "$@"; give gpu ;;
  nvidia-smi) asked "$@"; flag driver || exit 9; give driver ;;
  mokutil) asked "$@"; give secure-boot ;;
  usermod) record "$@"; touch "$WORLD/group" ;;
  gpasswd) record "$@"; rm -f "$WORLD/group" ;;
  apt-get) record "$@"; if [[ $* == *docker.io* && $1 == install ]]; then ln -sf "$WORLD/../shelf/stub.sh" "${0%/*}/docker"; fi ;;
  snap)
    case "$*" in
      "list microk8s") asked "$@"; flag snap ;;
      "install microk8s "*) record "$@"; touch "$WORLD/snap"; ln -sf "$WORLD/../shelf/stub.sh" "${0%/*}/microk8s" ;;
      "refresh --hold microk8s") record "$@" ;;
      "remove --purge microk8s") record "$@"; rm -f "$WORLD/snap" "${0%/*}/microk8s" "$WORLD"/addon-* "$WORLD"/release-* ;;
      *) unknown "$@" ;;
    esac ;;
  microk8s) microk8s "$@" ;;
  make)
    record "$@"
    mkdir -p "$2/.venv/bin"
    ln -sf "$WORLD/../shelf/stub.sh" "$2/.venv/bin/python"
    ln -sf "$WORLD/../shelf/stub.sh" "$2/.venv/bin/pip"
    touch "$2/.venv/.installed" ;;
  pip) record "$@" ;;
  python) record "$@"; mkdir -p "$3/mobilenetv4"; touch "$3/mobilenetv4/config.pbtxt" ;;
  *) unknown "$@" ;;
esac
