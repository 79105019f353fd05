#!/bin/sh
# Makes the virtual environment $1 and installs the project as $2 (. or .[dev]) into it, with the
# versions of constraints.txt.
set -eu
venv=$1
what=$2
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "setup: '$python' is not Python 3.11 or newer; set PYTHON to one that is" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -q && apt-get install -q -y --no-install-recommends python3-venv
    else
        echo "setup: Python's venv module is missing; install it (Debian: python3-venv)" >&2
        exit 1
    fi
fi
# What tests use that are skipped without: of the CPU kernels, a compiler and emulated AVX512; of
# several hosts, network namespaces.
case $what in *dev*)
    missing=
    command -v g++ >/dev/null || missing="g++"
    [ -e /usr/include/simde/x86/avx512.h ] || missing="$missing libsimde-dev"
    command -v ip >/dev/null || missing="$missing iproute2"
    if [ -n "$missing" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        # shellcheck disable=SC2086
        { apt-get update -q && apt-get install -q -y --no-install-recommends $missing; } ||
            echo "setup: going on without: $missing" >&2
    elif [ -n "$missing" ]; then
        echo "setup: going on without: $missing (Debian packages)" >&2
    fi
esac
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "setup: installing $what into $venv (the first time takes a minute or two)"
"$venv/bin/python" -m pip install --quiet --constraint constraints.txt \
    --editable ./proto --editable "$what"
"$venv/bin/python" -m workers.kernels.build >/dev/null ||
    echo "setup: going on without CPU kernels; torch computes instead" >&2
