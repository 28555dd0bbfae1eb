# unpack.sh ARCH ROOT PACKAGE…: the files of Debian packages for a processor, laid below ROOT as the archive has them now.
# What nothing at run time reads stays out. /var/lib/dpkg/status.d says what is there, where scanners look for it.
set -eu
arch=$1 root=$2
shift 2
mkdir -p /debs "$root/var/lib/dpkg/status.d" && cd /debs
[ "$arch" = "$(dpkg --print-architecture)" ] || dpkg --add-architecture "$arch"
apt-get update -qq
apt-get download -qq -o APT::Sandbox::User=root $(for package in "$@"; do echo "$package:$arch"; done)
for deb in *.deb; do
  dpkg-deb -x "$deb" "$root"
  dpkg-deb -f "$deb" > "$root/var/lib/dpkg/status.d/$(dpkg-deb -f "$deb" Package)"
done
rm -rf /debs /var/lib/apt/lists/*
cd "$root"
find usr/share/doc -mindepth 2 ! -type d ! -name copyright -delete
rm -rf usr/share/man usr/share/locale usr/share/lintian usr/share/info usr/share/base-files usr/share/python3 \
  usr/share/applications usr/share/pixmaps usr/share/binfmts usr/share/bug usr/share/gcc usr/share/gdb usr/lib/valgrind \
  usr/lib/*/gconv usr/share/dict usr/share/common-licenses/GFDL* etc/apt etc/dpkg etc/update-motd.d etc/profile.d
rm -rf usr/lib/python3.11/lib2to3 usr/lib/python3.11/ensurepip usr/lib/python3.11/pydoc_data usr/lib/python3.11/idlelib \
  usr/lib/python3.11/turtle.py
find . -type d -empty ! -path ./tmp ! -path ./proc ! -path ./sys ! -path ./dev -delete
