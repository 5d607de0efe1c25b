#!/bin/sh
# Sees to it that the programs which the tests drive are there: ip, ping, iperf3, tcpdump, curl, ps.
#
# As root on a machine with apt, installs what is missing and nothing else. Anywhere else it prints what to
# install. It never fails: a test whose program is missing skips with a reason (with CI=true that skip fails).
set -eu

PATH="$PATH:/usr/sbin:/sbin"
missing=""
for pair in ip:iproute2 ping:iputils-ping iperf3:iperf3 tcpdump:tcpdump curl:curl ps:procps; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
done
[ -n "$missing" ] || exit 0

by_hand() {
    echo "Some tests will skip until these are installed:$missing" >&2
    exit 0
}

[ "$(id -u)" = 0 ] || by_hand
command -v apt-get >/dev/null 2>&1 || by_hand

export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "Installing for the tests:$missing" >&2
# shellcheck disable=SC2086  # one word a package is what apt-get wants
if { apt-get update && apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1 </dev/null; then
    exit 0
fi
tail -n 5 "$log" >&2
by_hand
