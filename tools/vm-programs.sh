#!/bin/sh
# Fetches what the tests boot virtual machines with into target/vm: QEMU, a kernel with its virtio modules, BusyBox.
#
# They are Debian's packages, taken apart there and not installed: that needs no rights, changes nothing on the machine
# (a QEMU tool that is installed may be newer and would have to go), and `make clean` removes it. A QEMU that is
# installed is used instead. It never fails: a test that finds nothing there skips with a reason (with CI=true that
# skip fails).
set -eu
cd "$(dirname "$0")/.."

PATH="$PATH:/usr/sbin:/sbin"
vm=target/vm
[ ! -e "$vm/kernel" ] || exit 0

without() {
    echo "Tests with virtual machines will skip: $1" >&2
    exit 0
}

for program in apt-get apt-cache dpkg dpkg-deb; do
    command -v "$program" >/dev/null 2>&1 || without "there is no $program to fetch QEMU and a kernel with"
done
[ "$(dpkg --print-architecture)" = amd64 ] || without "they boot a kernel for amd64"

mkdir -p target
work=$(mktemp -d "$PWD/target/vm-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/root" "$work/vm/modules"
# Lists and downloads of its own, so that neither root nor anybody's lock is needed.
options="-o Dir::State::Lists=$work/lists -o Dir::Cache=$work/cache -o Debug::NoLocking=1 -o APT::Sandbox::User="

fetch() {
    set -e
    packages=busybox-static
    command -v qemu-system-x86_64 >/dev/null 2>&1 || packages="$packages qemu-system-x86"
    # shellcheck disable=SC2086  # one word an option, and a package, is what apt-get wants
    {
        apt-get $options update
        apt-get $options install -y --reinstall --no-install-recommends --download-only $packages
        kernel=$(apt-cache $options depends linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }')
        cd "$work/cache/archives"
        apt-get $options download "$kernel"
    }
    for package in *.deb; do
        dpkg-deb -x "$package" "$work/root"
    done
}

echo "Fetching a kernel and QEMU for the tests" >&2
# A shell of its own: `set -e` is off in whatever stands before `||`.
(fetch) >"$work/log" 2>&1 </dev/null &
if ! wait $!; then
    tail -n 5 "$work/log" >&2
    without "QEMU and a kernel could not be fetched"
fi

cp "$work/root/boot/"vmlinuz-* "$work/vm/kernel"
cp "$work/root/bin/busybox" "$work/vm/busybox"
find "$work/root/lib/modules" -path '*/kernel/*' -type f \
    \( -name 'virtio*.ko*' -o -name 'failover.ko*' -o -name 'net_failover.ko*' \) -exec cp {} "$work/vm/modules" \;
rm -rf "$work/root/boot" "$work/root/lib/modules"
mv "$work/root" "$work/vm/root"
rm -rf "$vm"
mv "$work/vm" "$vm"
