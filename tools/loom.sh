#!/usr/bin/env bash
# Runs the loom models of vbnet-core: every interleaving of ring and signal up to a bound on preemptions.
#
#   tools/loom.sh            the models must pass
#   tools/loom.sh mutants    each `vbnet_mutant = "..."` in the sources weakens one ordering: the models must then fail
#
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

models() { cargo test --quiet -p vbnet-core --release --test 'loom_*' "$@"; }

if [ "${1:-}" != mutants ]; then
    models
    exit 0
fi

names=$(grep -rhoE 'vbnet_mutant = "[a-z0-9_]+"' rust/core/src | sed -E 's/.*"(.*)"/\1/' | sort -u)
survivors=0
for name in $names; do
    # A wrapper for each mutant, so that only the workspace's own crates are compiled again.
    wrapper="$CARGO_TARGET_DIR/mutants/$name"
    mkdir -p "$(dirname "$wrapper")"
    cat >"$wrapper" <<WRAPPER
#!/bin/sh
rustc=\$1
shift
exec "\$rustc" "\$@" --cfg 'vbnet_mutant="$name"'
WRAPPER
    chmod +x "$wrapper"
    RUSTC_WORKSPACE_WRAPPER="$wrapper" models --no-run >"$wrapper.log" 2>&1 || { cat "$wrapper.log" >&2; exit 1; }
    if RUSTC_WORKSPACE_WRAPPER="$wrapper" timeout 300 cargo test -p vbnet-core --release --test 'loom_*' --no-fail-fast \
        >"$wrapper.log" 2>&1; then
        echo "survived: $name (no model notices this mutation)"
        survivors=$((survivors + 1))
    else
        echo "caught:   $name"
    fi
done
[ -n "$names" ] || { echo "no mutants are declared in rust/core/src" >&2; exit 1; }
[ "$survivors" = 0 ]
