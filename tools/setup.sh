# What the scripts here share: `die`, `need`, `venv`. To be sourced, in the repository's root.

die() { echo "$0: $*" >&2; exit 1; }

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

# venv DIR REQUIREMENTS [PIP OPTION...]: makes the environment, again when the requirements change.
venv() {
    dir=$1 requirements=$2; shift 2
    stamp="$(python3 -V) $(cksum < "$requirements")"
    if [ "$(cat "$dir/stamp" 2>/dev/null || true)" = "$stamp" ] && "$dir/bin/python3" -c '' 2>/dev/null; then return; fi
    rm -rf "$dir"
    python3 -m venv "$dir"
    "$dir/bin/python3" -m pip install --quiet --disable-pip-version-check "$@" -r "$requirements"
    echo "$stamp" > "$dir/stamp"
}
