# Runs each of its arguments, lines of shell, when whoever writes to its stdin has gone without
# saying "done". A pipe has ended when all who could write to it have, in whatever way.
#
# Each line of stdin is the process group that runs now and is killed first, or empty. Until the
# first one nothing has begun.

trap '' HUP INT TERM
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
