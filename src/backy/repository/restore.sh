#!/bin/sh
# Gets the disks of a virtual machine back out of this folder. Needs a shell, zstd and the usual
# Unix tools (busybox will do), neither backy nor Python. How: ./restore.sh --help
#
# The same by hand, in this folder; for REV and vda write what the first two commands show:
#
#   ls revisions                            # one folder a backup, named after its time in UTC
#   cat revisions/REV/revision.json         # its disks, and the size of each in bytes
#   cp revisions/REV/vda.img /new/disk.img  # if there is a vda.img; if not, vda.blocks names the
#                                           # chunks of the disk, one a block, in their order:
#   sed 's|^..|chunks/&/&|; s|$|.zst|' revisions/REV/vda.blocks |
#       xargs zstd -dcq --sparse > /new/disk.img
#
# For a block device use --no-sparse: what is skipped would keep its old bytes there. To check the
# result, hash its blocks (1048576 bytes, or what "block_size" says) and compare with the list:
#
#   split -b 1048576 --filter='b3sum --no-names' /new/disk.img | cmp - revisions/REV/vda.blocks
#
# If chunks are missing or damaged, take all the others, and zeroes in place of what is lost:
#
#   sed 's|^..|chunks/&/&|; s|$|.zst|' revisions/REV/vda.blocks | while read -r chunk; do
#       if zstd -tq "$chunk"; then zstd -dcq "$chunk"; else head -c 1048576 /dev/zero; fi
#   done > /new/disk.img

set -u
export LC_ALL=C # Ids are sorted by byte, so the oldest comes first, and [a-f] means no more.
newline='
'

# Whoever closed a standard stream must not have a file of ours in its place. Standard output can
# only be read then, so that writing a disk to it fails.
(: 3<&0) 2>/dev/null || exec </dev/null
(: 3>&1) 2>/dev/null || exec 1</dev/null
(: 3>&2) || exec 2>/dev/null

# Goes on where nobody can hear it.
say() { printf 'restore.sh: %s\n' "$*" >&2 || :; }
die() {
    say "$@"
    exit 1
}
unless_written() { # Ends the script. A reader that has read enough is no reason for a message.
    [ "$?" -gt 128 ] || say "standard output cannot be written. Is it full, or closed?"
    exit 1
}

usage() {
    cat <<'END'
usage: ./restore.sh                       list the revisions and their disks
       ./restore.sh REVISION DISK TARGET  write a disk of a revision to TARGET

REVISION  an id from the list, the beginning of just one of them, or "latest"
DISK      a name from the list, such as vda
TARGET    a new file; an existing file or a block device, which is overwritten; - for stdout
END
}

human() { # 1610612736 -> 1.5 GiB
    tenths=$(($1 * 10)) unit=B
    for larger in KiB MiB GiB TiB; do
        [ "$tenths" -lt 10240 ] || { tenths=$((tenths / 1024)) && unit=$larger; }
    done
    echo "$((tenths / 10)).$((tenths % 10)) $unit"
}

revisions() { # The ids, the oldest first. A dot in front marks a backup that never finished.
    for folder in revisions/[0-9]*Z-*; do [ ! -d "$folder" ] || echo "${folder#revisions/}"; done
}

# revision.json has one key a line, and two spaces in front for each level: sed can read that.
list() {
    revisions | while read -r id; do
        sed -n 's/^  "time": "\(.*\)",*$/time \1/p
            s/^  "trust": "\(.*\)",*$/trust \1/p
            /^  "tags": \[$/,/^  \]/ s/^    "\(.*\)",*$/tag \1/p
            /^  "disks": {$/,/^  }/ s/^    "\(.*\)": {$/disk \1/p
            /^  "disks": {$/,/^  }/ s/^      "size": \([0-9]*\),*$/size \1/p
            ' "revisions/$id/revision.json" | {
            taken='' trust='' tags='' disks=''
            while read -r key value; do
                case $key in
                time) taken=$value ;;
                trust) trust=$value ;;
                tag) tags="${tags:+$tags, }$value" ;;
                disk) disks="$disks$newline    $value" ;;
                size) disks="$disks  $(human "$value")  $value bytes" ;;
                esac
            done
            printf '%s\n' "$id  $taken  $trust${tags:+  $tags}$disks" 2>/dev/null
        } || exit
    done
}

of_disk() { # The value of a key of the wanted disk, such as size.
    sed -n '/^  "disks": {$/,/^  }/ {
        /^    "'"$(echo "$disk" | sed 's/[.]/[.]/g')"'": {$/,/^    }/ {
            s/^      "'"$1"'": "*\([0-9a-f]*\)"*,*$/\1/p
        }
    }' "$revision/revision.json"
}

# A pipeline reports the status of its last part only. So a part that fails says so on
# descriptor 4, and whoever runs the pipeline listens there.
failed() { echo failed >&4; }
chunks() { sed 's|^..|chunks/&/&|; s|$|.zst|' "$index" || failed; }
all_chunks_exist() {
    [ -z "$( { chunks | xargs ls -d >/dev/null 2>&1 || failed; } 4>&1)" ]
}

# These two write to the target, which is open as descriptor 3, and print something only if they
# fail. xargs starts one zstd after the other, with as many chunks as fit on a command line, and
# 255 is the one status at which it stops early.
write_chunks() { # write_chunks --sparse or --no-sparse
    # shellcheck disable=SC2016 # The inner shell is to expand these.
    { chunks | xargs sh -c 'zstd -dcq "$0" "$@" >&3 || { echo "zstd $?" >&4; exit 255; }' "$1" ||
        failed; } 4>&1
}
write_image() {
    case $kind:$(cp --help 2>&1) in
    regular:*--sparse*) cp --sparse=always "$image" "$target" || echo failed ;;
    # The cp of busybox fills holes, zstd leaves them. If the first one fails, so does the second,
    # for want of an end.
    regular:*) zstd -1cq <"$image" | zstd -dcq --sparse >&3 || echo failed ;;
    *) cat "$image" >&3 || echo failed ;;
    esac
}

# Reads every chunk, and names each block that cannot be restored. A chunk in which several blocks
# are kept is read once.
name_bad_blocks() {
    say "reading every chunk to name all bad blocks; this takes longer than a restore ..."
    last=$(tail -n 1 "$index")
    sed '=' "$index" | sed 'N; s/\n/ /' | sort -u -k 2,2 | sort -n | while read -r _ hash; do
        chunk=chunks/${hash%"${hash#??}"}/$hash.zst
        [ "$hash" = "$last" ] && want=$last_size || want=$block_size
        if [ ! -e "$chunk" ]; then
            problem="is missing"
        elif ! zstd -tq "$chunk" 2>/dev/null; then
            problem="is damaged"
        elif [ "$(zstd -dcq "$chunk" | wc -c)" -ne "$want" ]; then
            problem="does not hold $want bytes"
        else
            continue
        fi
        sed -n "/^$hash/=" "$index" | while read -r line; do
            say "block $((line - 1)) at byte $(((line - 1) * block_size)): $chunk $problem"
        done
    done
    say "the head of this script tells how to take all the other blocks"
}

position() { # How far the target has been written. This stays 0 for a pipe, and without /proc.
    echo $(($(sed -n 's/^pos:[^0-9]*//p' "/proc/$$/fdinfo/3" 2>/dev/null) + 0))
}

give_up() { # Leaves nothing that could be taken for a whole disk.
    say "$@"
    [ "$kind" != regular ] || { : >"$target" && die "FAILED, and $target is empty now"; }
    die "FAILED, and what is in $target now is not the disk: do not use it"
}

case $#:${1-} in
0:) ;;
1:-h | 1:--help)
    usage 2>/dev/null || unless_written
    exit
    ;;
3:?*) ;;
*)
    usage >&2
    exit 2
    ;;
esac
caller=$(pwd -P)
cd "$(dirname "$(readlink -f "$0")")" || die "cannot enter the folder of $0"
repository=$(pwd -P)
[ -d revisions ] || die "there is no folder $repository/revisions. Is this a repository?"
if [ $# -eq 0 ]; then
    list || unless_written
    exit
fi

# Which disk of which revision.
if [ "$1" = latest ]; then
    id=$(revisions | tail -n 1)
else
    id=$(revisions | while read -r id; do case $id in "$1"*) echo "$id" ;; esac done)
fi
case $id in
'') die "there is no revision $1. See: $repository/restore.sh" ;;
*"$newline"*) die "more than one revision begins with $1:$newline$id" ;;
esac
disk=$2 revision=revisions/$id
case $disk in '' | *[!A-Za-z0-9._-]*) die "$disk is not the name of a disk" ;; esac
index=$revision/$disk.blocks image=$revision/$disk.img
size=$(of_disk size) block_size=$(of_disk block_size)
[ -n "${size:+$block_size}" ] || die "there is no disk $disk in $id. See: $repository/restore.sh"
[ -z "$(sed -n '/^  "trust": "distrusted"/p' "$revision/revision.json")" ] ||
    say "warning: $id is distrusted: something was found wrong with it. Prefer another one"

# Which target. A mistyped name below /dev would become a file in memory.
kind=regular target=$3
case $3 in -) target="standard output" ;; /*) ;; *) target=$caller/$3 ;; esac
if [ "$3" = - ]; then
    kind=stream resolved=''
    [ ! -t 1 ] || die "standard output is a terminal. Append: > FILE"
elif [ -e "$target" ]; then
    resolved=$(readlink -f "$target")
    [ ! -d "$target" ] || die "$target is a folder. Name a file in it: $3/$disk.img"
    [ -f "$target" ] || kind=stream
    [ ! -b "$target" ] || kind=device
elif [ -L "$target" ]; then
    die "$target is a link to a file that does not exist"
else
    resolved=$(cd "$(dirname "$target")" && pwd -P)/$(basename "$target")
    case $resolved in /dev/shm/*) ;; /dev/*) die "there is no device $target" ;; esac
fi
case $resolved in "$repository"/*) die "$target is inside the repository. Choose another" ;; esac
if [ "$kind" = device ]; then
    capacity=$(blockdev --getsize64 "$target" 2>/dev/null) ||
        capacity=$(($(cat "/sys/class/block/${resolved##*/}/size") * 512))
    [ "$capacity" -ge "$size" ] ||
        die "$target is too small: it has $capacity bytes, and $disk has $size"
    case $resolved in *[0-9]) partition=p ;; *) partition='' ;; esac
    while read -r mounted _; do
        case $(readlink -f "$mounted") in
        "$resolved" | "$resolved$partition"[0-9]*) die "$mounted is mounted: umount it first" ;;
        esac
    done </proc/mounts
fi

# What can be checked fast is checked before the target is touched.
if [ -e "$image" ]; then
    got=$(stat -Lc %s "$image")
    [ "$got" -eq "$size" ] || die "$image is damaged: it has $got bytes instead of $size"
else
    command -v zstd >/dev/null || die "zstd is not installed, and the chunks need it"
    [ -e "$index" ] || die "there is neither $repository/$image nor $repository/$index"
    blocks=$(((size + block_size - 1) / block_size))
    last_size=$((size - (blocks - 1) * block_size))
    got=$(stat -Lc %s "$index")
    [ "$got" -eq $((65 * blocks)) ] ||
        die "$index is damaged: it has $got bytes instead of 65 for each of $blocks blocks"
    line=$(sed -n '/^[0-9a-f]\{64\}$/!{ =; q; }' "$index") || die "cannot read $index"
    [ -z "$line" ] || die "$index is damaged: line $line is no hash"
    if command -v b3sum >/dev/null; then
        hash=$(b3sum <"$index")
        [ "${hash%% *}" = "$(of_disk index_hash)" ] ||
            die "$index is damaged: $revision/revision.json has another index_hash"
    else
        say "b3sum is not installed, so the hash of $index is not checked"
    fi
    all_chunks_exist || {
        name_bad_blocks
        die "FAILED: not every chunk is there. $target has not been touched"
    }
fi

# Opening a file empties it, so whatever a sparse restore skips is zero.
if [ "$3" = - ]; then exec 3>&1; else command exec 3>"$target" || die "cannot write $target"; fi
trap 'give_up "stopped by a signal"' HUP INT TERM
start=$(position)
if [ -e "$image" ]; then
    [ -z "$(write_image)" ] || give_up "cannot copy $image to $target. Is it full?"
else
    [ "$kind" = regular ] && sparse=--sparse || sparse=--no-sparse
    case $(write_chunks "$sparse") in
    '') ;;
    # zstd counts the errors of writing from 70 on; those above 128 are signals.
    "zstd "[7-9][0-9]* | "zstd "1[0-9][0-9]*) give_up "cannot write $target. Is it full?" ;;
    *) name_bad_blocks && give_up "chunks of $disk could not be read" ;;
    esac
fi
[ "$kind" = regular ] && written=$(stat -c %s "$resolved") || written=$(($(position) - start))
case $kind:$written in
*:"$size") ;;
device:0 | stream:0) say "nothing tells how much arrived: make sure that it is $size bytes" ;;
*)
    [ -e "$image" ] || name_bad_blocks
    give_up "$disk has $size bytes, but $written bytes were restored"
    ;;
esac
# Only now does the kernel tell what it could not bring to the disk.
[ "$kind" = stream ] || dd if=/dev/null conv=fsync >&3 2>/dev/null ||
    give_up "$target could not be written. Is it full, or defective?"
say "restored $disk of $id: $size bytes ($(human "$size")) to $target"
