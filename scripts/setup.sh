#!/usr/bin/env bash
# Installs what building and testing llmq needs and this machine lacks (Debian 12, 13 and their kin). Does nothing when all
# is there. usage: scripts/setup.sh [--arm]     --arm: also what scripts/test_neon.sh needs (55 MB to fetch)
set -euo pipefail

packages=(gcc g++ libc6-dev cmake ninja-build pkg-config libopenblas-dev libpcre2-dev libutf8proc-dev libjansson-dev libedit-dev
    libcmocka-dev python3 python3-venv xz-utils git)
case ${1-} in
'') ;;
--arm) [ "$(uname -m)" != x86_64 ] || packages+=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user) ;;
*) echo "usage: scripts/setup.sh [--arm]" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    missing=()
    for tool in cc c++ cmake ninja pkg-config python3 git; do command -v "$tool" >/dev/null || missing+=("$tool"); done
    if command -v pkg-config >/dev/null; then
        for module in libpcre2-8 libutf8proc jansson openblas libedit cmocka; do
            pkg-config --exists "$module" || missing+=("$module")
        done
    fi
    if [ ${#missing[@]} -gt 0 ]; then
        echo "setup: this is not Debian; please install: ${missing[*]}" >&2
        exit 1
    fi
    exit 0
fi

missing=()
for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
    echo "setup: all packages are there"
    exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "setup: as root, please: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi
echo "setup: installing ${missing[*]}"
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
