# Runs its arguments, lines of shell, if stdin ends without the line "done". A pipe ends when all
# its writers have ended, for any reason.
#
# Each line of stdin is the process group that runs now and must be killed first, or empty. If
# stdin ends before the first line, nothing was started, so nothing is run.

trap '' HUP INT TERM
echo
exec >/dev/null
read -r group || exit 0
while read -r line; do
    [ "$line" != done ] || exit 0
    group=$line
done
trap : HUP INT TERM # no command inherits this
[ -z "$group" ] || kill -s KILL -- "-$group"
for line; do
    eval "$line"
done
