# Run as root in a machine with systemd, where the package is installed: says in /said what it does, one fact a line.
# shellcheck disable=SC2016,SC2034  # the conditions are for eval

say() { echo "$1=$2" >>/said; }
state() { systemctl is-active backy.service; }
main() { systemctl show backy.service -p MainPID --value; }
revisions() { backy list vm1 --json 2>/dev/null | grep -o '"id"' | wc -l; }
# Gives up after some time: what is said next then tells what went wrong.
until_true() { for try in $(seq 1000); do eval "$1" && return; sleep 0.1; done; }
install() { dpkg --force-unsafe-io --install /backy.deb >/dev/null; }
trap 'say "done" yes; systemctl poweroff' EXIT
touch /tmp/of-others

dpkg --purge backy >/dev/null
install
say without_jobs "$(state)"
say without_jobs_at_boot "$(systemctl is-enabled backy.service)"

dpkg --purge backy >/dev/null
mkdir -p /etc/backy/jobs.d
cp /vm1.yaml /etc/backy/jobs.d/vm1.yaml
install
say with_jobs "$(state)"
say with_jobs_at_boot "$(systemctl is-enabled backy.service)"

backy run vm1
until_true '[ "$(revisions)" -eq 1 ]'
say backed_up "$(revisions)"

before=$(main)
install
until_true '[ "$(main)" != "$before" ] && [ "$(state)" = active ]'
say upgraded "$(state)"

systemctl reload backy.service
until_true 'journalctl -u backy.service | grep -q reloaded'
say reloaded "$(state)"
systemctl stop backy.service
say stopped "$(systemctl show backy.service -p Result --value)"
systemctl start backy.service

# A QEMU outside of the unit, of another user; it may not enter what only root may.
mkdir /run/vm3
truncate -s 1M /run/vm3/disk
chown nobody /run/vm3 /run/vm3/disk
systemd-run --quiet --unit=vm3 --uid=nobody qemu-storage-daemon \
    --blockdev driver=file,node-name=vda,filename=/run/vm3/disk \
    --chardev socket,path=/run/vm3/qmp,server=on,wait=off,id=monitor --monitor chardev=monitor
until_true '[ -S /run/vm3/qmp ]'
cp /vm3.yaml /etc/backy/jobs.d/vm3.yaml
systemctl reload backy.service
until_true 'backy run vm3'
until_true '[ -d /srv/backy/vm3/revisions/2* ]'
say qemu_outside "$(backy list vm3 --json | grep -o '"id"' | wc -l)"
say scratch "$(stat -c %a /var/lib/backy /var/lib/backy/scratch | tr '\n' ' ')"
say scratch_left "$(ls /var/lib/backy/scratch)"
rm /etc/backy/jobs.d/vm3.yaml
systemctl reload backy.service

touch /wait
backy run vm1
until_true '[ -s /waiting ]'
kill -KILL "$(main)"
until_true '[ "$(state)" != active ]'
say killed "$(state)"
sleep 1
say hook_of_the_killed "$(kill -0 "$(cat /waiting)" && echo lives)"
rm /wait
until_true '[ "$(revisions)" -eq 2 ]'
say backed_up_without_the_daemon "$(revisions)"
until_true '[ "$(grep -c after-snapshot /hooks)" -eq 2 ]'
say hooks "$(tr '\n' ' ' </hooks)"

# As after `make install`: the program is in /usr/local/bin, and nowhere else.
systemctl stop backy.service
mv /usr/bin/backy /usr/bin/of-the-package
mkdir -p /usr/local/bin
ln -s /usr/lib/backy/bin/backy /usr/local/bin/backy
systemctl start backy.service
say from_usr_local "$(state)"
rm /usr/local/bin/backy
mv /usr/bin/of-the-package /usr/bin/backy

dpkg --remove backy >/dev/null
say removed "$(state)"
