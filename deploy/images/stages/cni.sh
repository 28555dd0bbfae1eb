# cni.sh ARCH SOURCE TARGET: the CNI executable, static, for a processor that need not be this one.
set -eu
arch=$1 source=$2 target=$3
case $arch in
  amd64) triplet=x86_64-linux ;;
  arm64) triplet=aarch64-linux ;;
  *) echo "no compiler is known for $arch: amd64 or arm64" >&2; exit 1 ;;
esac
[ "$arch" = "$(dpkg --print-architecture)" ] || dpkg --add-architecture "$arch"
apt-get update -qq
apt-get install -qq --yes --no-install-recommends "gcc-$(echo "$triplet" | tr _ -)-gnu" "musl-dev:$arch" "linux-libc-dev:$arch" > /dev/null
rm -rf /var/lib/apt/lists/*
mkdir -p "$(dirname "$target")"
"$triplet-gnu-gcc" -specs "/usr/lib/$triplet-musl/musl-gcc.specs" -static -O2 -Wall -Wextra -Werror -s -o "$target" "$source"
