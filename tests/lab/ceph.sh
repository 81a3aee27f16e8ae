#!/bin/bash
# A real Ceph cluster for tests: a monitor and one OSD on 127.0.0.1, with cephx, without systemd.
#
#   ceph.sh DIR PORT
#
# Fills the empty folder DIR and prints "ready" when the cluster can be used with DIR/ceph.conf; it
# has the pool "rbd". The monitor listens on PORT and PORT + 1, the OSD takes ports that are free.
# Everything ends, and DIR is removed, when standard input ends: also where a test was killed.
# DIR/osd.pid has the process of the OSD, for tests of a cluster that hangs.
set -euo pipefail

dir=${1:?usage: ceph.sh DIR PORT}
port=${2:?usage: ceph.sh DIR PORT}
export CEPH_CONF=$dir/ceph.conf
unset CEPH_ARGS CEPH_KEYRING

# The daemons die with this shell, whatever it dies of.
serve() { setpriv --pdeathsig KILL -- "$@" <&- >>"$dir/daemons.log" 2>&1 & }
# Only what fails is heard of.
quietly() { "$@" >"$dir/said" 2>&1 || { tail -n 20 "$dir/said" >&2 && false; }; }

end() {
  local daemons
  mapfile -t daemons < <(jobs -p)
  # The cluster is thrown away, so nobody needs to write anything down.
  kill -KILL "${daemons[@]}" 2>/dev/null || true
  wait 2>/dev/null
  rm -rf -- "$dir"
}
trap end EXIT
trap 'exit 1' INT TERM HUP

fsid=$(cat /proc/sys/kernel/random/uuid)
cat >"$CEPH_CONF" <<CONF
[global]
fsid = $fsid
mon host = [v2:127.0.0.1:$((port + 1)),v1:127.0.0.1:$port]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
keyring = $dir/\$cluster.\$name.keyring
run dir = $dir
admin socket =
log file =
log to stderr = true
crash dir = $dir
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon allow pool delete = true
mon max pg per osd = 1000
rbd default features = 61
# Snapshots get their number from the monitor, which otherwise collects requests for a second.
paxos propose interval = 0.05
paxos min wait = 0.01
[mon]
mon data = $dir/mon
mon initial members = a
mon cluster log to file = false
mon rocksdb options = write_buffer_size=8388608,compression=kNoCompression
[osd]
osd data = $dir/osd
osd objectstore = bluestore
bluestore block size = 10737418240
bluestore block create = true
bluestore fsck quick fix on mount = false
osd memory target = 939524096
osd memory cache min = 134217728
osd op num shards = 2
osd op num threads per shard = 1
osd crush update on start = false
osd class update on start = false
CONF

mkdir "$dir/mon" "$dir/osd"
keyring() { quietly ceph-authtool --create-keyring "$@"; }
keyring "$dir/mon.keyring" --gen-key -n mon. --cap mon 'allow *'
keyring "$dir/ceph.client.admin.keyring" --gen-key -n client.admin \
  --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
quietly ceph-authtool "$dir/mon.keyring" --import-keyring "$dir/ceph.client.admin.keyring"
quietly monmaptool --create --fsid "$fsid" \
  --addv a "[v2:127.0.0.1:$((port + 1)),v1:127.0.0.1:$port]" "$dir/monmap"
quietly ceph-mon --mkfs -i a --monmap "$dir/monmap" --keyring "$dir/mon.keyring"
cp "$dir/mon.keyring" "$dir/mon/keyring"
serve ceph-mon -f -i a --keyring "$dir/mon/keyring"

uuid=$(cat /proc/sys/kernel/random/uuid)
key=$(ceph-authtool --gen-print-key)
keyring "$dir/ceph.osd.0.keyring" --name osd.0 --add-key "$key"
echo "{\"cephx_secret\": \"$key\"}" >"$dir/osd.json"
ceph() { quietly timeout 60 ceph --connect-timeout 50 "$@"; }
ceph osd new "$uuid" -i "$dir/osd.json"
quietly ceph-osd -i 0 --mkfs --osd-uuid "$uuid" --keyring "$dir/ceph.osd.0.keyring"
ceph osd crush add osd.0 1.0 root=default host=lab
serve ceph-osd -f -i 0 --keyring "$dir/ceph.osd.0.keyring"
echo $! >"$dir/osd.pid"
ceph osd pool create rbd 8 8
quietly timeout 60 rbd pool init rbd
echo ready
cat >/dev/null
