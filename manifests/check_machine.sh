# shellcheck shell=bash disable=SC2154
# What install.sh (which reads this file and sets the names used here) looks at before it changes anything.
problem() { PROBLEMS=$((PROBLEMS + 1)); say "  PROBLEM: $1"; say "    Cure: $2"; }
os_field() { sed -n "s/^$1=//p" "$OS_RELEASE" 2>/dev/null | tr -d '"'; }
do_check() {
  local os free ram
  os="$(os_field ID) $(os_field VERSION_ID)"
  [[ $os == "ubuntu $UBUNTU_VERSION" ]] || problem "this is $os, not Ubuntu $UBUNTU_VERSION" \
    "use Ubuntu $UBUNTU_VERSION; on another Kubernetes apply manifests/ yourself (docs/install.md)."
  [[ $(uname -m) == x86_64 ]] || problem "this is $(uname -m)" "the nvidia addon is for x86_64 only."
  if [[ $ME != 0 ]]; then
    if ! has sudo; then problem "you are not root and there is no sudo" "apt-get install sudo as root, and add yourself to the group sudo."
    elif [[ -z $DRY_RUN ]] && ! sudo -v; then problem "sudo refuses you" "ask who runs this machine to add you to the group sudo."; fi
  elif [[ -n ${SUDO_USER:-} ]]; then
    problem "started with sudo, so everything would belong to root" "run ./install.sh as $SUDO_USER; it calls sudo where it must."
  fi
  has snap || problem "there is no snap" "sudo apt-get install snapd"
  [[ $ROOT != *[[:space:]]* ]] || problem "the path $ROOT has a space" "move the repository: MicroK8s' addons split the paths they are given."
  free=$(df -Pk /var | awk 'NR == 2 { print int($4 / 1048576) }')
  ((free >= MIN_DISK_GIB)) || owned microk8s || problem "$free GiB free below /var, $MIN_DISK_GIB needed" "make room, or mount a larger disk at /var/snap."
  ram=$(awk '/^MemTotal/ { print int($2 / 1048576) }' "$MEMINFO")
  ((ram >= MIN_RAM_GIB)) || problem "$ram GiB of memory, $MIN_RAM_GIB needed" "use a machine with 16 GiB or more."
  ! selected gpu || check_gpu
  ((PROBLEMS == 0)) || [[ -n $DRY_RUN ]] || die "$PROBLEMS problem(s), listed above; nothing was changed" "as said with each."
}
check_gpu() {
  local driver
  has lspci || { problem "there is no lspci to look for a GPU with" "sudo apt-get install pciutils"; return; }
  [[ -n $(ask lspci -d 10de:) ]] || { problem "no NVIDIA GPU" "--skip gpu,sharing sets up the service on the CPU, to try it out."; return; }
  driver=$(ask nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1) || driver=''
  if [[ -z $driver ]]; then
    problem "the GPU has no working driver (nvidia-smi fails)" "sudo ubuntu-drivers install, then reboot."
    [[ $(ask mokutil --sb-state) != *enabled* ]] || problem "Secure Boot is on: the kernel refuses a driver module that is not signed" \
      "take Ubuntu's signed one (ubuntu-drivers does), or enrol your own key: sudo mokutil --import /var/lib/shim-signed/mok/MOK.der"
  elif ((${driver%%.*} < MIN_DRIVER)); then
    problem "driver $driver; Triton's image needs $MIN_DRIVER or newer" "sudo ubuntu-drivers install, then reboot."
  fi
}
