#!/bin/sh
# Installs this bundle into a new folder, and reports what this host has for training on GPUs.
#
#   ./install.sh DIRECTORY
#
# It needs no Python and no internet, but sh, tar, gzip, sha256sum and, on x86-64, glibc @GLIBC@ or
# later.
set -eu

fail() {
  echo "error: $1" >&2
  exit 1
}

[ $# -eq 1 ] || fail "expected one argument, the folder to install into, found $#; run ./install.sh DIRECTORY"
bundle=$(cd "$(dirname "$0")" && pwd)
target=$1
[ ! -e "$target" ] || fail "$target: expected a new folder, found one that exists; remove it, or name another folder"
[ "$(uname -m)" = x86_64 ] || fail "expected an x86_64 machine, found $(uname -m); make a bundle on a machine like this one"
for tool in tar gzip sha256sum; do
  command -v "$tool" >/dev/null || fail "expected $tool on PATH, found none; install it with the system's package manager"
done
found=$(getconf GNU_LIBC_VERSION 2>/dev/null || echo "glibc 0")
found=${found#glibc }
oldest=$(printf '%s\n%s\n' "@GLIBC@" "$found" | sort -V | head -n 1)
[ "$oldest" = "@GLIBC@" ] || fail "expected glibc @GLIBC@ or later, found $found; make the bundle on a system as old as this one"

echo "checking the parts"
(cd "$bundle" && sha256sum --quiet --check SHA256SUMS >&2) ||
  fail "$bundle: a part, named above, is missing or damaged; copy it again"

partial=$target.partial
rm -rf "$partial"
mkdir -p "$partial"
trap 'rm -rf "$partial"' EXIT
echo "unpacking into $target"
cat "$bundle"/python.tar.gz.* | gzip -dc | tar -xf - -C "$partial" ||
  fail "$partial: unpacking failed, see the line above; free disk space, or name another folder"
# The Python that was just unpacked reads the second archive, which gzip cannot.
cat "$bundle"/packages.tar.xz.* |
  PYTHONPATH='' PYTHONHOME="$partial/python" "$partial/python/bin/python3" -S -c '
import lzma, shutil, sys
shutil.copyfileobj(lzma.open(sys.stdin.buffer), sys.stdout.buffer, 1 << 20)' |
  tar -xf - -C "$partial" ||
  fail "$partial: unpacking failed, see the line above; free disk space, or name another folder"
[ -f "$partial/dlrm/main.py" ] ||
  fail "$partial: unpacking failed, see the lines above; free disk space, or name another folder"
mv "$partial" "$target"
trap - EXIT

target=$(cd "$target" && pwd)
echo
(cd "$target/dlrm" && "$target/bin/python3" -m tools.doctor) || true
cat <<TEXT

Installed. To check this host's GPUs, then train:
  export PATH=$target/bin:\$PATH
  cd $target/dlrm
  python3 -m tools.gpu_check
  horovodrun -np 8 ./hvd_wrapper.sh python3 main.py --data_dir=DATA ...
TEXT
