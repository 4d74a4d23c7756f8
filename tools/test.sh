#!/bin/sh
# Sets up what the tests need and runs them all: ./tools/test.sh [arguments of `cargo test`]
#
# Needs cargo and python3. The rest of a bare Debian machine (a C compiler, curl, venv) comes from apt
# when we may install it; the Python judges go to the private .venv/, the server's clients to
# tests/clients/, made again when their requirements change. Running it again costs nothing but
# the tests.
set -eu
cd "$(dirname "$0")/.."

. tools/setup.sh

command -v cargo >/dev/null || die "cargo is not installed; see https://rustup.rs"
need 'command -v cc' gcc libc6-dev
need 'command -v curl' curl
need 'command -v python3' python3
need 'command -v chromium || command -v chromium-browser || command -v google-chrome' chromium
need 'python3 -c "import ensurepip, venv"' python3-venv

venv .venv tools/requirements.txt
venv tests/clients/.venv tests/clients/requirements.txt --no-deps

# The Node clients, by the Node of that environment: Debian's is older than what they ask for. Not `npm ci`, which
# wants every platform's packages in the lock file.
modules=tests/clients/node_modules
stamp=$(cksum < tests/clients/package-lock.json)
if [ "$(cat $modules/stamp 2>/dev/null || true)" != "$stamp" ]; then
    rm -rf $modules
    (cd tests/clients && PATH="$PWD/.venv/bin:$PATH" npm install --no-save --no-audit --no-fund --loglevel=error)
    echo "$stamp" > $modules/stamp
fi

# Release: the forward passes are too slow without optimization.
exec cargo test --release --locked "$@"
