#!/bin/sh
# Writes python/mlx_worker/requirements-{cpu,cuda13,macos}.txt: every package of the MLX worker's environment, pinned
# and hashed, from PyPI. Change the versions here, run it, run `cargo test --lib mlx`, commit. Needs python3 and PyPI;
# uv comes along in a temporary folder.
set -eu
cd "$(dirname "$0")/../python/mlx_worker"

mlx=0.32.4
versions="mlx-lm==0.32.2 mlx==$mlx transformers==5.23.0"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check uv==0.13.9

# lock VARIANT PLATFORM PACKAGE: the package is what computes on that platform.
lock() {
    out=requirements-$1.txt
    printf '%s\n' $versions "$3==$mlx" > "$folder/in.txt"
    # The oldest Python that mlx-lm takes: what is there for it is there for newer ones.
    "$folder/venv/bin/uv" pip compile --quiet --generate-hashes --no-header --no-annotate --no-emit-index-url \
        --no-config --python-version 3.11 --python-platform "$2" "$folder/in.txt" -o "$folder/out.txt"
    { echo "# Written by tools/lock_mlx.sh, from PyPI."; cat "$folder/out.txt"; } > "$out"
}
lock cpu x86_64-manylinux_2_35 mlx-cpu
lock cuda13 x86_64-manylinux_2_35 mlx-cuda-13
# MLX wants macOS 14.
MACOSX_DEPLOYMENT_TARGET=14.0
export MACOSX_DEPLOYMENT_TARGET
lock macos aarch64-apple-darwin mlx-metal
