#!/bin/sh
# Puts NVIDIA's compiler into .venv-cuda/, where the build looks for it: ./tools/cuda.sh
#
# Not needed where a CUDA toolkit 13.0 or later is installed. Needs python3 and a C++ compiler (from apt when we may
# install them), 0.5 GB, and no GPU.
set -eu
cd "$(dirname "$0")/.."
. tools/setup.sh

need 'command -v g++' g++
need 'python3 -c "import ensurepip, venv"' python3-venv
venv .venv-cuda tools/cuda-requirements.txt
