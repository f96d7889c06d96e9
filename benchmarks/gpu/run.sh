#!/bin/sh
# Measures what the library does on a GPU, without network: benchmarks/gpu/run.sh [--quick --device cpu]
#
# Python packages that the machine lacks are installed from benchmarks/gpu/wheels, where
# benchmarks/gpu/fetch.sh has put them, into a folder that goes with the run.
# PYTHON is the interpreter with PyTorch, WHEELS another folder of wheels.
set -eu
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD"
WHEELS=${WHEELS:-benchmarks/gpu/wheels}
if [ -d "$WHEELS" ]; then
	site=$(mktemp -d)
	trap 'rm -rf "$site"' EXIT
	"$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" \
		"$WHEELS"/*.whl
	export PYTHONPATH="$site:$PWD"
fi
"$PYTHON" -m benchmarks.gpu.run "$@"
