#!/bin/sh
# Installs what `vbnet bench` compares vbnet with: DPDK's testpmd (Debian packages) and iceoryx2 (into .venv).
#
# The benches run without any of it; rows of a missing peer are left out. Huge pages make DPDK faster: as root,
# `sysctl vm.nr_hugepages=560` before a run and `sysctl vm.nr_hugepages=0` after it.
set -eu
cd "$(dirname "$0")/.."

drivers=""
for part in mempool-ring net-memif net-vhost net-virtio; do
    # Debian puts the version of DPDK's interface into the names of its libraries.
    found=$(apt-cache pkgnames "librte-$part" | sort | tail -n 1)
    drivers="$drivers $found"
done
# shellcheck disable=SC2086  # one word a package is what apt-get wants
DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends dpdk-dev $drivers
.venv/bin/python -m pip install iceoryx2
