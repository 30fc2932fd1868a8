#!/usr/bin/env bash
# What `make test-clients` needs beside the project's own environment: Node 20, npm, a Chromium, the packages of
# package-lock.json, and LiteLLM in build/clients-venv. Missing programs come from apt-get, where this runs as root.
set -euo pipefail
cd "$(dirname "$0")"

missing=()
command -v node > /dev/null || missing+=(nodejs)
command -v npm > /dev/null || missing+=(npm)
command -v chromium > /dev/null || command -v chromium-browser > /dev/null || command -v google-chrome > /dev/null ||
    missing+=(chromium)
if [ "${#missing[@]}" -gt 0 ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
        echo "make test-clients: ${missing[*]} must be installed first, because only root with apt-get can do it here" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
fi
node -e 'if (parseInt(process.versions.node) < 20) throw new Error(`Node is ${process.version}, expected 20 or later`)'

npm ci --silent --no-audit --no-fund
[ -x ../../build/clients-venv/bin/python ] || "${1:-python3}" -m venv ../../build/clients-venv
../../build/clients-venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
