#!/bin/sh
# Sees to it that the programs which the tests drive are there: ip, ping, iperf3, tcpdump, curl, ps,
# tmux, prometheus, promtool, chromium, systemd-analyze, openssl, dpdk-testpmd. tools/vm-programs.sh has those for machines.
#
# As root on a machine with apt, installs what is missing and nothing else. Anywhere else it prints what to
# install. It never fails: a test whose program is missing skips with a reason (with CI=true that skip fails).
# No service is started or enabled: tests start what they need themselves.
set -eu

PATH="$PATH:/usr/sbin:/sbin"
missing=""
for pair in ip:iproute2 ping:iputils-ping iperf3:iperf3 tcpdump:tcpdump curl:curl ps:procps tmux:tmux \
    prometheus:prometheus chromium:chromium systemd-analyze:systemd openssl:openssl; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
done
# Debian puts the version of DPDK's interface into the names of its drivers; apt takes these for patterns.
dpdk="dpdk-dev librte-mempool-ring.* librte-net-virtio.* librte-net-vhost.*"
command -v dpdk-testpmd >/dev/null 2>&1 && ls /usr/lib/*/librte_net_vhost.so.* >/dev/null 2>&1 || missing="$missing $dpdk"
[ -n "$missing" ] || exit 0

by_hand() {
    echo "Some tests will skip until these are installed:$missing" >&2
    exit 0
}

[ "$(id -u)" = 0 ] || by_hand
command -v apt-get >/dev/null 2>&1 || by_hand

export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
policy=/usr/sbin/policy-rc.d
if [ -e "$policy" ]; then
    policy=""
else
    # Whoever installs a service asks this program whether it may be started.
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
fi
trap 'rm -f "$log" $policy' EXIT
echo "Installing for the tests:$missing" >&2
# shellcheck disable=SC2086  # one word a package is what apt-get wants
if { apt-get update && apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $missing; } \
    >"$log" 2>&1 </dev/null; then
    case "$missing" in
    *prometheus*) [ ! -d /run/systemd/system ] || systemctl --quiet disable prometheus >>"$log" 2>&1 || true ;;
    esac
    exit 0
fi
tail -n 5 "$log" >&2
by_hand
