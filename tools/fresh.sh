#!/usr/bin/env bash
# The README's two commands on a new machine: an empty Debian 13 (Python 3.13) in a folder, with the
# committed tree, in which `make demo` and `make test` run. Needs root, debootstrap and about 10 GB.
#   make fresh                       # in a temporary folder, removed at the end
#   make fresh FRESH_ROOT=/var/fresh # in that folder; the next run there only updates the project
# FRESH_MIRROR names another Debian mirror. PIP_*, proxies and certificates are carried inside.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "fresh: $*"; }

fail() {
  echo "fresh: $*" >&2
  exit 1
}

make_root() {
  [ -e "$root/etc/debian_version" ] && [ ! -e "$root/debootstrap" ] && return
  say "an empty Debian 13 in $root"
  debootstrap --variant=minbase trixie "$root" ${FRESH_MIRROR:-}
}

# Settings of the network, by which packages are reached; files that they name are copied.
carry_network() {
  local name value
  carried=()
  cp /etc/resolv.conf /etc/hosts "$root/etc/"
  for name in "${!PIP_@}" http_proxy https_proxy no_proxy SSL_CERT_FILE REQUESTS_CA_BUNDLE; do
    value=${!name:-}
    if [ -f "$value" ]; then
      install -D --mode=644 "$value" "$root$value"
    elif [ -z "$value" ] || [ -d "$value" ]; then
      continue
    fi
    carried+=("$name=$value")
  done
}

# Run a command in the project's folder inside; what it starts and mounts ends with it. The folder
# becomes the root as a new machine has it: in a chroot the kernel allows no user namespaces, which a
# test needs. A shell stays as the first process, which takes in those whose parent has died.
inside() {
  unshare --mount --pid --fork --kill-child bash -c '
    set -e
    root=$1; shift
    mount --bind "$root" "$root"
    mount --rbind /dev "$root/dev"
    mount -t proc proc "$root/proc"
    mount -t sysfs sysfs "$root/sys"
    mkdir -p "$root/host"
    cd "$root"
    pivot_root . host
    umount --lazy /host
    exec "$@"' - "$root" \
    /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    DEBIAN_FRONTEND=noninteractive "${carried[@]}" \
    bash -c 'cd /srv/project; "$@"; exit $?' - "$@"
}

apt_install() {
  say "apt-get install $*"
  inside apt-get install --yes -qq --no-install-recommends "$@" >/dev/null
}

# The committed tree, beside a virtual environment that an earlier run left.
copy_project() {
  find "$root/srv/project" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
  git archive HEAD | tar --extract --directory "$root/srv/project"
  rm -f "$root/srv/project/.venv/.installed"
}

# Run a make target inside; adds its outcome to the report.
run_make() {
  local began=$SECONDS outcome=passed log="$root/srv/$1.log"
  say "make $1"
  inside make "$1" 2>&1 | tee "$log" || { outcome=FAILED && failed=1; }
  report+=("make $1: $outcome after $((SECONDS - began)) s")
  mapfile -t -O ${#report[@]} report < <(
    grep -E '^(SKIPPED|FAILED|ERROR)|^=+ .*(passed|failed|error).* =+$' "$log"
  )
}

[ "$(id -u)" = 0 ] || fail "root is needed, to change the root folder"
command -v debootstrap >/dev/null || fail "debootstrap is needed: apt-get install debootstrap"
root=$(realpath "${FRESH_ROOT:-$(mktemp --directory)}")
[ -n "${FRESH_ROOT:-}" ] || trap 'rm -rf --one-file-system "$root"' EXIT
carried=() report=() failed=0
make_root
mkdir -p "$root/srv/project"
carry_network
inside apt-get update -qq
# What any installed Debian has, and make.
apt_install ca-certificates make python3
carry_network # that package writes a file which they may name
copy_project
mapfile -t packages < <(inside bash tools/install.sh --system-packages)
[ ${#packages[@]} = 0 ] || apt_install "${packages[@]}"
run_make demo
run_make test
say "$(inside .venv/bin/python --version), commit $(git rev-parse --short HEAD):"
printf '  %s\n' "${report[@]}"
exit $failed
