#!/bin/sh
# Which Python builds vbnet: prints the interpreter to use, or says what is missing and fails.
#
# $PYTHON wins when it is set; otherwise the first of python3, python3.14 ... python3.11 that is new enough and
# can make a virtual environment. Development headers are not needed: the native module uses the stable ABI.
set -eu

usable() {
    command -v "$1" >/dev/null 2>&1 || return 1
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

explain() {
    if ! command -v "$1" >/dev/null 2>&1; then
        echo "  $1: not found" >&2
    elif ! "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        echo "  $1: $("$1" --version 2>&1), but 3.11 or newer is needed" >&2
    else
        echo "  $1: has no venv/ensurepip module (on Debian and Ubuntu: apt install python3-venv)" >&2
    fi
}

if ! command -v cargo >/dev/null 2>&1; then
    echo "vbnet needs cargo (Rust 1.88 or newer) to build its native module; it was not found on PATH." >&2
    exit 1
fi

for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if usable "$candidate"; then
        command -v "$candidate"
        exit 0
    fi
done

echo "vbnet needs Python 3.11 or newer with the venv module. Tried:" >&2
for candidate in ${PYTHON:-python3}; do
    explain "$candidate"
done
echo "Name another one with: make PYTHON=/path/to/python3 ..." >&2
exit 1
