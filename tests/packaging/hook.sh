#!/bin/sh
# A hook that tells what it may do in the sandbox of the unit.
may() { if eval "$2" 2>/dev/null; then echo "may_$1=yes"; else echo "may_$1=no"; fi >>/said; }

echo "$BACKY_EVENT" >>/hooks
if [ -e /wait ]; then
    echo $$ >/waiting
    while [ -e /wait ]; do sleep 0.1; done
elif [ "$BACKY_EVENT" = before-snapshot ]; then
    may become_another_user 'setpriv --reuid=65534 --regid=65534 --clear-groups true'
    may write_a_dump 'mkdir -p /var/backups && touch /var/backups/dump && touch /opt/dump'
    may record_volume_groups 'touch /etc/lvm/backup'
    may mount 'mount -t tmpfs none /mnt && umount /mnt'
    may make_a_namespace 'unshare --mount true'
    may change_programs 'touch /usr/bin/x'
    may change_the_configuration 'touch /etc/passwd'
    may use_raw_sockets 'python3 -c "import socket as s; s.socket(s.AF_PACKET, s.SOCK_RAW)"'
    may see_tmp_of_others '[ -e /tmp/of-others ]'
fi
