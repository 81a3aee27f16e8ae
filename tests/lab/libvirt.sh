#!/bin/sh
# libvirt.sh FOLDER: a libvirtd of its own, whose files and socket are in FOLDER (which the user
# libvirt-qemu must be able to enter), until standard input ends. Needs root, and no systemd.
#
# It has namespaces of its own, so that the machine's libvirtd, its files and its domains are not
# touched, and so that it and its guests end with the first process in there, in any case.
set -eu

if [ "${2-}" != inside ]; then
    mkdir -p "$1"/etc "$1"/lib "$1"/cache "$1"/log "$1"/run
    # Files of the console need no virtlogd then, and the guests leave no control groups.
    cat >"$1/etc/qemu.conf" <<END
stdio_handler = "file"
cgroup_controllers = []
namespaces = []
security_driver = "none"
END
    cat >"$1/etc/libvirtd.conf" <<END
unix_sock_dir = "$1"
auth_unix_ro = "none"
auth_unix_rw = "none"
END
    exec unshare --mount --pid --fork --mount-proc "$0" "$1" inside
fi

mount -t tmpfs tmpfs /run
mkdir /run/libvirt
mount --bind "$1/run" /run/libvirt
mount --bind "$1/etc" /etc/libvirt
mount --bind "$1/lib" /var/lib/libvirt
mount --bind "$1/cache" /var/cache/libvirt
mount --bind "$1/log" /var/log/libvirt
if [ -e /dev/kvm ]; then
    # libvirtd may see it where QEMU's user may not use it, and then asks QEMU anew for what it can
    # do at each step, which takes a second. Guests could hang on it, too.
    : >"$1/kvm"
    chmod 0 "$1/kvm"
    mount --bind "$1/kvm" /dev/kvm
fi
exec 3<&0
libvirtd -f /etc/libvirt/libvirtd.conf &
trap 'exit 0' TERM
{
    read -r _ <&3 || true
    kill -s TERM 1
} &
# This also buries the guests that ended: libvirtd has them be children of the first process, and
# waits for 40 seconds where nobody does.
wait
