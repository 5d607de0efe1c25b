#!/usr/bin/env bash
# Runs the loom models of vbnet-core: every interleaving of rings, signals and the rest, up to a bound on preemptions.
#
#   tools/loom.sh            the models must pass
#   tools/loom.sh mutants    each ordering that has a name in the sources is weakened in turn: its models must then fail
#
# The first word of an ordering's name says whose it is: `ring_publish` is looked for by tests/loom_ring.rs.
# LOOM_MAX_PREEMPTIONS (default 3) bounds the search; loom's authors found two to three to catch what real code has.
set -euo pipefail
cd "$(dirname "$0")/.."

export LOOM_MAX_PREEMPTIONS="${LOOM_MAX_PREEMPTIONS:-3}"
CARGO_TARGET_DIR="$(realpath -m "${CARGO_TARGET_DIR:-target}")/loom"
export CARGO_TARGET_DIR
export RUSTFLAGS="--cfg loom"
# The models run optimised but are linked quickly: link-time optimisation buys nothing here.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16

if ! compgen -G 'rust/core/tests/loom_*.rs' >/dev/null; then
    echo "no loom models under rust/core/tests" >&2
    exit 1
fi

models() { cargo test --quiet -p vbnet-core --release --test "${1:-loom_*}"; }
export -f models

# try_mutant NAME: fails if no model notices.
try_mutant() {
    if VBNET_MUTANT=$1 timeout 300 bash -c "models loom_${1%%_*}" >"$CARGO_TARGET_DIR/mutant-$1.log" 2>&1; then
        echo "survived: $1 (no model notices this mutation)"
        return 1
    fi
    if ! grep -q '^test result: FAILED' "$CARGO_TARGET_DIR/mutant-$1.log"; then
        echo "not tried: $1 (see $CARGO_TARGET_DIR/mutant-$1.log)"
        return 1
    fi
    echo "caught:   $1"
}
export -f try_mutant

if [ "${1:-}" != mutants ]; then
    models
    exit 0
fi

names=$(grep -rhoE '(ordering|half_fence|full_fence)\("[a-z0-9_]+"' rust/core/src | sed -E 's/.*"(.*)"/\1/' | sort -u)
[ -n "$names" ] || { echo "no ordering has a name in rust/core/src" >&2; exit 1; }
cargo test --quiet -p vbnet-core --release --test 'loom_*' --no-run
xargs -P "$(nproc)" -I{} bash -c 'try_mutant {}' <<<"$names"
