#!/bin/bash
# guest-build.sh OUT: make OUT/vmlinuz and OUT/initrd.img, a small Linux with the QEMU guest agent.
#
# It mounts those of /dev/vda and /dev/vdb that are ext4, and writes to them for ever: noise, and
# after it a counter, to the first disk and then to the second. So in a view of one point in time
# the counter of the second disk is that of the first, or one less. A file /run/stop shuts it down.
#
# Debian's packages are fetched and unpacked; nothing is installed. Needs apt-get, dpkg-deb, cpio
# of busybox, and the libraries that the agent needs, which are taken from this machine.
set -euo pipefail
out=$(mkdir -p "${1:?OUT}" && cd "$1" && pwd)
work=$(mktemp -d "$out/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/packages" "$work/unpacked"
cd "$work/packages"
newest_kernel() {
    apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ {print $2; exit}'
}
kernel=$(newest_kernel)
if [ -z "$kernel" ]; then # nobody has fetched the lists of packages yet
    apt-get update -qq
    kernel=$(newest_kernel)
fi
# As the user that apt drops to, it could not write here.
apt-get download -qq -o APT::Sandbox::User=root "$kernel" qemu-guest-agent busybox-static
for package in *.deb; do
    dpkg-deb -x "$package" "$work/unpacked"
done

root=$work/root unpacked=$work/unpacked
mkdir -p "$root"/{bin,sbin,proc,sys,dev,run,tmp,var/run,modules,etc/qemu,mnt/vda,mnt/vdb}
cp "$unpacked/bin/busybox" "$root/bin/"
cp "$unpacked/usr/sbin/qemu-ga" "$root/sbin/"
ldd "$unpacked/usr/sbin/qemu-ga" >"$work/libraries"
if grep "not found" "$work/libraries"; then exit 1; fi
grep -o '/[^ ]*' "$work/libraries" | sort -u | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done
version=$(basename "$unpacked"/lib/modules/*)
for module in virtio/virtio virtio/virtio_ring virtio/virtio_pci_modern_dev \
    virtio/virtio_pci_legacy_dev virtio/virtio_pci block/virtio_blk char/virtio_console; do
    path=$unpacked/lib/modules/$version/kernel/drivers/$module.ko
    if [ -e "$path" ]; then cp "$path" "$root/modules/"; else
        xz -dc "$path.xz" >"$root/modules/$(basename "$module").ko"
    fi
done

cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci \
    virtio_blk virtio_console; do
    insmod "/modules/$module.ko"
done
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 1000 ]; do usleep 100000; tries=$((tries + 1)); done
mkdir -p /dev/virtio-ports
ln -sf /proc/mounts /etc/mtab
for port in /sys/class/virtio-ports/*; do
    [ -e "$port/name" ] && ln -sf "/dev/$(basename "$port")" "/dev/virtio-ports/$(cat "$port/name")"
done
folders=
for disk in vda vdb; do
    [ -b /dev/$disk ] && mount -t ext4 /dev/$disk /mnt/$disk 2>/dev/null && folders="$folders /mnt/$disk"
done
qemu-ga -d -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0 -t /run -f /run/agent.pid
echo "guest: ready"
count=0
while true; do
    count=$((count + 1))
    for folder in $folders; do
        dd if=/dev/urandom of=$folder/noise$((count % 20)) bs=64k count=4 2>/dev/null
        echo $count >$folder/counter.new
        mv $folder/counter.new $folder/counter
        sync
    done
    if [ -e /run/stop ]; then
        umount $folders
        poweroff -f
    fi
    usleep 20000
done
INIT
chmod +x "$root/init"
(cd "$root" && find . | "$root/bin/busybox" cpio -o -H newc 2>/dev/null | gzip -1) >"$out/initrd.img"
cp "$unpacked/boot/vmlinuz-$version" "$out/vmlinuz"
