#!/usr/bin/env bash
# Makes a Debian machine able to run `make test-vm`: qemu, and Debian's kernel unpacked (never installed, so nothing boots
# it) in build/vm/kernel. Safe to run again; a kernel that is there stays.
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { echo "vm-setup: $*" >&2; exit 1; }
[ "$(dpkg --print-architecture)" = amd64 ] || fail "the VM is of amd64; this machine is $(dpkg --print-architecture)"
missing=()
while read -r package; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null)" = installed ] || missing+=("$package")
done < <(grep -v '^#' requirements/vm-apt.txt)
kernel=build/vm/kernel
[ ${#missing[@]} -gt 0 ] || [ ! -e $kernel/.ready ] || exit 0
[ "$(id -u)" = 0 ] || fail "to be run by root once: apt-get install ${missing[*]}"
apt-get update -qq
if [ ${#missing[@]} -gt 0 ]; then
  echo "vm-setup: installing ${#missing[@]} Debian packages: ${missing[*]}"
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
fi
[ ! -e $kernel/.ready ] || exit 0
image=$(apt-cache depends --no-recommends --no-suggests linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9]\S*\)$/\1/p' | head -1)
[ -n "$image" ] || fail "Debian's archive names no kernel (package linux-image-amd64)"
echo "vm-setup: unpacking $image into $kernel"
rm -rf build/vm/download $kernel
mkdir -p build/vm/download
(cd build/vm/download && apt-get download -qq -o APT::Sandbox::User=root "$image")
dpkg-deb -x build/vm/download/*.deb $kernel
rm -rf build/vm/download
depmod -b "$kernel" "$(ls $kernel/lib/modules)"
touch $kernel/.ready
