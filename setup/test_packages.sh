#!/usr/bin/env bash
# Installs Debian's packages of what the tests of launchers and metrics start: Slurm, SSH servers,
# networks of namespaces, Prometheus' own checker. Without them, or without root, these tests are
# skipped.
set -euo pipefail

packages=(iproute2 munge openssh-client openssh-server prometheus slurm-wlm)
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "warning: expected root on Debian to install ${packages[*]}; some tests are skipped" >&2
  exit
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
