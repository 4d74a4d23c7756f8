#!/bin/sh
# Sets up what the tests need and runs them all: ./tools/test.sh [arguments of `cargo test`]
#
# Needs cargo and python3. The rest of a bare Debian machine (a C compiler, venv) comes from apt
# when we may install it; the Python judges go to the private .venv/, made again when
# tools/requirements.txt changes. Running it again costs nothing but the tests.
set -eu
cd "$(dirname "$0")/.."

die() { echo "tools/test.sh: $*" >&2; exit 1; }

# need COMMAND PACKAGE...: installs the packages unless COMMAND succeeds.
need() {
    check=$1; shift
    if sh -c "$check" >/dev/null 2>&1; then return; fi
    if ! command -v apt-get >/dev/null; then die "please install what Debian calls: $*"; fi
    if [ "$(id -u)" = 0 ]; then as_root=; else as_root='sudo -n'; fi
    echo "installing $*" >&2
    { DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -q "$@" ||
        { $as_root apt-get update -q && DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -q "$@"; }; } >&2 ||
        die "could not install $*; please run: sudo apt-get install $*"
}

command -v cargo >/dev/null || die "cargo is not installed; see https://rustup.rs"
need 'command -v cc' gcc libc6-dev
need 'command -v python3' python3
need 'python3 -c "import ensurepip, venv"' python3-venv

python=.venv/bin/python3
stamp="$(python3 -V) $(cksum < tools/requirements.txt)"
if [ "$(cat .venv/stamp 2>/dev/null || true)" != "$stamp" ] || ! $python -c '' 2>/dev/null; then
    rm -rf .venv
    python3 -m venv .venv
    $python -m pip install --quiet --disable-pip-version-check -r tools/requirements.txt
    echo "$stamp" > .venv/stamp
fi

# Release: the forward passes are too slow without optimization.
exec cargo test --release --locked "$@"
