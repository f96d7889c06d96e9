#!/bin/sh
# Fetches wheels for a Linux machine without network into benchmarks/gpu/wheels, for run.sh.
#
# PYTHON  the interpreter here, with pip; FOR_PYTHON  version of the one there (3.12)
set -eu
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
FOR_PYTHON=${FOR_PYTHON:-3.12}
LIMIT_MB=60
set --
for glibc in 2_34 2_31 2_28 2_27 2_24 2_17; do
	set -- "$@" --platform "manylinux_${glibc}_x86_64"
done
rm -rf benchmarks/gpu/wheels
"$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$FOR_PYTHON" \
	--implementation cp --platform manylinux2014_x86_64 --platform manylinux1_x86_64 "$@" \
	--constraint constraints.txt --requirement benchmarks/gpu/wheels.txt --dest benchmarks/gpu/wheels
size=$(du -sm benchmarks/gpu/wheels | cut -f1)
echo "benchmarks/gpu/wheels: $size MB"
if [ "$size" -gt $LIMIT_MB ]; then
	echo "expected at most $LIMIT_MB MB, as much as travels at once" >&2
	exit 1
fi
