#!/usr/bin/env bash
# Makes a Debian 12 machine able to build and run images: podman with what it needs, unless docker is there and its daemon
# answers. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v podman > /dev/null || ! docker info > /dev/null 2>&1 || exit 0
missing=()
while read -r package; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null)" = installed ] || missing+=("$package")
done < <(grep -v '^#' requirements/ship-apt.txt)
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ]; then
  echo "images-setup: missing Debian packages, to be installed by root: apt-get install ${missing[*]}" >&2
  exit 1
fi
echo "images-setup: installing ${#missing[@]} Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
