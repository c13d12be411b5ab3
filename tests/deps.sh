#!/usr/bin/env bash
# Installs the Debian programs that the full tests use, without starting their services.
set -euo pipefail

packages=(
  prometheus
  prometheus-alertmanager
  prometheus-blackbox-exporter
  prometheus-node-exporter
  gcc
  libc6-dev
  systemd
)

missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] \
    || missing+=("$package")
done
if [ "${#missing[@]}" -eq 0 ]; then
  echo "deps: all installed"
  exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "deps: not installed: ${missing[*]}; run 'make deps' as root" >&2
  exit 1
fi

# policy-rc.d is how Debian says "do not start services on installation"; 101 means forbidden.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod 755 "$policy"
  trap 'rm -f "$policy"' EXIT
fi
apt-get update --quiet=2
DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends "${missing[@]}"
echo "deps: installed ${missing[*]}"
