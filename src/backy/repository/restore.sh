#!/bin/sh
# Gets the disks of a virtual machine back out of this folder. Needs a shell, zstd and the usual
# Unix tools (busybox will do), neither backy nor Python. How: ./restore.sh --help
#
# If others can write to this folder, this may not be the script that backy wrote. Use backy-restore
# of the package then, which is the same script: backy-restore FOLDER. It trusts nothing in FOLDER.
#
# The same by hand, in this folder; for REV and vda write what the first two commands show:
#
#   ls revisions                            # one folder a backup, named after its time in UTC
#   cat revisions/REV/revision.json         # its disks, and the size of each in bytes
#   cp revisions/REV/vda.img /new/disk.img  # if there is a vda.img; if not, vda.blocks lists the
#                                           # pages of the disk, and each page lists 252 chunks,
#                                           # one a block, all in the order of the disk:
#   sed 's|^..|pages/&/&|' revisions/REV/vda.blocks | xargs cat |
#       sed 's|^..|chunks/&/&|; s|$|.zst|' | xargs zstd -dcq --sparse > /new/disk.img
#
# If revision.json says "format": 1, there are no pages, and vda.blocks lists the chunks: here and
# below, write "cat revisions/REV/vda.blocks" for everything up to "xargs cat".
# If a page is missing or damaged, use its second copy, which has the same name in twins. This
# brings back all pages:
#
#   cp -r twins/. pages/
#
# For a block device use --no-sparse: what is skipped would keep its old bytes there. To check the
# result, hash its blocks (1048576 bytes, or what "block_size" says) and compare with the list:
#
#   sed 's|^..|pages/&/&|' revisions/REV/vda.blocks | xargs cat > /new/list
#   split -b 1048576 --filter='b3sum --no-names' /new/disk.img | cmp - /new/list
#
# If chunks are missing or damaged, take all the others, and zeroes in place of what is lost:
#
#   sed 's|^..|pages/&/&|' revisions/REV/vda.blocks | xargs cat |
#       sed 's|^..|chunks/&/&|; s|$|.zst|' | while read -r chunk; do
#           if zstd -tq "$chunk"; then zstd -dcq "$chunk"; else head -c 1048576 /dev/zero; fi
#       done > /new/disk.img

set -u
umask 077       # A disk is nobody else's business.
unset CDPATH    # It would lead cd elsewhere.
export LC_ALL=C # Ids are sorted by byte, so the oldest comes first, and [a-f] means no more.
newline='
'
case ${0##*/} in
backy-restore) me=backy-restore command="backy-restore FOLDER" ;;
*) me=restore.sh command=./restore.sh ;;
esac

# Whoever closed a standard stream must not have a file of ours in its place. Standard output can
# only be read then, so that writing a disk to it fails.
(: 3<&0) 2>/dev/null || exec </dev/null
(: 3>&1) 2>/dev/null || exec 1</dev/null
(: 3>&2) || exec 2>/dev/null
exec 4>/dev/null # Where a part of a pipeline says that it failed, if nobody listens.

# Goes on where nobody can hear it.
say() { printf '%s: %s\n' "$me" "$*" >&2 || :; }
die() {
    say "$@"
    exit 1
}
unless_written() { # Ends the script. A reader that has read enough is no reason for a message.
    [ "$?" -gt 128 ] || say "standard output cannot be written. Is it full, or closed?"
    exit 1
}

usage() {
    cat <<END
usage: $command                       list the revisions and their disks
       $command REVISION DISK TARGET  write a disk of a revision to TARGET

REVISION  an id from the list, the beginning of just one of them, or "latest"
DISK      a name from the list, such as vda
TARGET    a new file; an existing file or a block device, which is overwritten; - for stdout
END
}

human() { # 1610612736 -> 1.5 GiB
    whole=$1 tenths=0 unit=B
    for larger in KiB MiB GiB TiB; do
        [ "$whole" -lt 1024 ] ||
            { tenths=$((whole % 1024 * 10 / 1024)) && whole=$((whole / 1024)) && unit=$larger; }
    done
    echo "$whole.$tenths $unit"
}

# Others may have written this folder: nothing in it is opened that is a link, a pipe or a device,
# no number is used that a shell cannot hold, and no text is shown that could speak to a terminal.
is_plain() { [ -f "$1" ] && [ ! -L "$1" ]; }
is_number() { case $1 in '' | 0* | *[!0-9]*) false ;; *) [ ${#1} -le 18 ] ;; esac }
record() { # The revision.json of a revision; nothing if it cannot be one.
    is_plain "revisions/$1/revision.json" &&
        [ "$(stat -c %s "revisions/$1/revision.json")" -le 1048576 ] &&
        sed 's/[^ -~]/?/g' "revisions/$1/revision.json"
}

revisions() { # The ids, the oldest first. A dot in front marks a backup that never finished.
    two='[0-9][0-9]' any='[a-z0-9]'
    for folder in revisions/$two$two$two${two}T$two$two${two}Z-$any$any$any$any; do
        { [ ! -d "$folder" ] || [ -L "$folder" ]; } || echo "${folder#revisions/}"
    done
}

# revision.json has one key a line, and two spaces in front for each level: sed can read that.
list() {
    revisions | while read -r listed; do
        record "$listed" | sed -n 's/^  "time": "\(.*\)",*$/time \1/p
            s/^  "trust": "\(.*\)",*$/trust \1/p
            /^  "tags": \[$/,/^  \]/ s/^    "\(.*\)",*$/tag \1/p
            /^  "disks": {$/,/^  }/ s/^    "\(.*\)": {$/disk \1/p
            /^  "disks": {$/,/^  }/ s/^      "size": \(.*[^,]\),*$/size \1/p
            ' | {
            taken='' trust='' tags='' disks=''
            while read -r key value; do
                case $key in
                time) taken=$value ;;
                trust) trust=$value ;;
                tag) tags="${tags:+$tags, }$value" ;;
                disk) disks="$disks$newline    $value" ;;
                size)
                    is_number "$value" || { disks="$disks  of no possible size" && continue; }
                    disks="$disks  $(human "$value")  $value bytes"
                    ;;
                esac
            done
            : "${taken:=its revision.json cannot be read}"
            printf '%s\n' "$listed  $taken  $trust${tags:+  $tags}$disks" 2>/dev/null
        } || exit
    done
}

of_disk() { # The value of a key of the wanted disk, such as size.
    record "$id" | sed -n '/^  "disks": {$/,/^  }/ {
        /^    "'"$(echo "$disk" | sed 's/[.]/[.]/g')"'": {$/,/^    }/ {
            s/^      "'"$1"'": "*\([0-9a-f]*\)"*,*$/\1/p
        }
    }'
}

# A pipeline reports the status of its last part only. So a part that fails says so on
# descriptor 4, and whoever runs the pipeline listens there.
failed() { echo failed >&4; }
chunks() { block_hashes | sed 's|^..|chunks/&/&|; s|$|.zst|' || failed; }
block_hashes() { # Of all blocks, in the order of the disk.
    if [ "$format" -eq 1 ]; then
        cat "$index" || failed
    else
        page_files | xargs cat || failed
    fi
}
page_files() { # Of all pages, in the order of the disk. chosen is set if a twin is needed.
    if [ -n "$chosen" ]; then
        printf '%s\n' "$chosen" || failed
    else
        sed 's|^..|pages/&/&|' "$index" || failed
    fi
}
all_chunks_exist() { # And each is a file.
    [ -z "$( { chunks | xargs ls -ld 2>/dev/null || failed; } 4>&1 | sed '/^-/d')" ]
}

# An index, a page and a twin are lists: lines of hashes, and nothing else.
no_hash() { sed -n '/^[0-9a-f]\{64\}$/!{ =; q; }' "$@"; } # The number of the first bad line.
list_problem() { # What is wrong with the list in file $1, of $2 bytes, with the hash $3.
    if [ ! -e "$1" ] && [ ! -L "$1" ]; then
        echo "is missing"
    elif ! is_plain "$1"; then
        echo "is a link, or no file"
    elif got=$(stat -c %s "$1") && [ "$got" != "$2" ]; then
        echo "is damaged: it has $got bytes instead of $2"
    elif ! got=$(no_hash "$1"); then
        echo "cannot be read"
    elif [ -n "$got" ]; then
        echo "is damaged: line $got is no hash"
    elif [ -n "$b3sum" ] && { ! got=$(b3sum <"$1") || [ "${got%% *}" != "$3" ]; }; then
        echo "is damaged: its hash is not $3"
    fi
}

# The pages of a good repository are checked in three pipelines, however many there are: first that
# each is a plain file of the right size, so that nothing else is opened, then its lines, then its
# hash. An index is the list of these hashes.
all_pages_are_good() {
    all_pages_have_their_size && all_pages_list_hashes && all_page_hashes_match
}
all_pages_have_their_size() {
    full='^regular file '$((65 * 252))'$' last='^regular file '$last_page'$'
    [ -z "$( { page_files | xargs stat -c '%F %s' 2>/dev/null || failed; } 4>&1 |
        sed -e '$!{ /'"$full"'/d; }' -e '${ /'"$last"'/d; }')" ]
}
all_pages_list_hashes() { [ -z "$( { block_hashes 2>/dev/null | no_hash || failed; } 4>&1)" ]; }
all_page_hashes_match() { # These, one a line, are the index.
    [ -z "$b3sum" ] ||
        [ "$(page_files | xargs b3sum --no-names 2>/dev/null | b3sum --no-names)" = "$index_hash" ]
}

# For each page the first good one of its two files, in the order of the disk, or else "neither".
choose_pages() {
    number=0 checked=''
    while read -r hash; do
        number=$((number + 1)) want=$((65 * 252))
        [ "$number" -ne "$lines" ] || want=$last_page
        # Zeroes are one page, many times in a row.
        if [ "$checked" != "$hash $want" ]; then
            checked="$hash $want" name=${hash%"${hash#??}"}/$hash twin_problem='' file=pages/$name
            problem=$(list_problem "pages/$name" "$want" "$hash")
            [ -z "$problem" ] || file=twins/$name
            [ -z "$problem" ] || twin_problem=$(list_problem "twins/$name" "$want" "$hash")
        fi
        if [ -n "$twin_problem" ]; then
            file=neither to=$((number * 252 * block_size))
            [ "$number" -ne "$lines" ] || to=$size
            say "page $((number - 1)), bytes $(((number - 1) * 252 * block_size)) to $((to - 1))" \
                "of $disk: pages/$name $problem, and twins/$name $twin_problem"
        fi
        echo "$file"
    done <"$index"
}

# These two write to the target, which is open as descriptor 3, and print something only if they
# fail. xargs starts one zstd after the other, with as many chunks as fit on a command line, and
# 255 is the one status at which it stops early. A chunk may unpack to more than a block, to
# terabytes even: not one byte is written behind the end of the disk. For a file the kernel ends
# zstd then, whose status is 153.
write_chunks() {
    if [ "$kind" = regular ]; then
        # shellcheck disable=SC3045 # A shell that leaves no core files need not know it.
        ulimit -c 0 2>/dev/null
        ulimit -f $(((size + 511) / 512)) # of 512 bytes
        { unpack_chunks --sparse >&3 || failed; } 4>&1
    else
        { { unpack_chunks --no-sparse || failed; } | first_bytes >&3 || echo "no write" >&4; } 4>&1
    fi
}
unpack_chunks() {
    # shellcheck disable=SC2016 # The inner shell is to expand these.
    chunks | xargs sh -c 'zstd -dcq "$0" "$@" || { echo "zstd $?" >&4; exit 255; }' "$1"
}
first_bytes() { # Unlike head, dd never reads more than it was told.
    rest=$((size % 65536))
    dd bs=65536 iflag=fullblock count=$((size / 65536)) 2>/dev/null &&
        { [ $rest -eq 0 ] || dd bs=$rest iflag=fullblock count=1 2>/dev/null; } &&
        { [ "$(dd bs=1 count=1 2>/dev/null | wc -c)" -eq 0 ] || echo "too much" >&4; }
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
    last=$(block_hashes | tail -n 1)
    block_hashes | sed '=' | sed 'N; s/\n/ /' | sort -u -k 2,2 | sort -n | while read -r _ hash; do
        chunk=chunks/${hash%"${hash#??}"}/$hash.zst
        [ "$hash" = "$last" ] && want=$last_size || want=$block_size
        got=$(is_plain "$chunk" && zstd -dcq "$chunk" 2>/dev/null | head -c $((want + 1)) | wc -c)
        if [ ! -e "$chunk" ]; then
            problem="is missing"
        elif ! is_plain "$chunk"; then
            problem="is a link, or no file"
        elif [ "$got" -gt "$want" ]; then
            problem="unpacks to more than $want bytes"
        elif ! zstd -tq "$chunk" 2>/dev/null; then
            problem="is damaged"
        elif [ "$got" -lt "$want" ]; then
            problem="does not hold $want bytes"
        else
            continue
        fi
        block_hashes | sed -n "/^$hash/=" | while read -r line; do
            say "block $((line - 1)) at byte $(((line - 1) * block_size)): $chunk $problem"
        done
    done
    say "the head of this script tells how to take all the other blocks"
}

position() { # How far the target has been written. This stays 0 for a pipe, and without /proc.
    echo $(($(sed -n 's/^pos:[^0-9]*//p' "/proc/$$/fdinfo/3" 2>/dev/null) + 0))
}

number_of() { # /dev/vda1 -> 254:1
    stat -Lc '0x%t 0x%T' "$1" | { read -r major minor && printf '%d:%d' "$major" "$minor"; }
}
users() { # Who uses the device $system, or a partition of it, or the device that it is a part of.
    for part in "$system" "$system"/*/ "$system"/..; do
        [ -e "$part/dev" ] || continue
        number=$(cat "$part/dev") name=$(basename "$(readlink -f "$part")")
        for holder in "$part"/holders/* /sys/fs/btrfs/*/devices/"$name"; do
            [ ! -e "$holder" ] || echo "$target is part of something else, see $holder"
        done
        cat /proc/mounts /proc/swaps 2>/dev/null | while read -r used _; do
            [ ! -b "$used" ] || [ "$(number_of "$used")" != "$number" ] ||
                echo "$used is mounted, or swap"
        done
    done
    # This changes nothing, but fails where the kernel has the device open exclusively: for ZFS.
    case $(wipefs --all --no-act "$target" 2>&1) in *" busy"*) echo "$target is in use" ;; esac
}

give_up() { # Leaves nothing that could be taken for a whole disk.
    say "$@"
    [ "$kind" != regular ] || { : >"$target" && die "FAILED, and $target is empty now"; }
    die "FAILED, and what is in $target now is not the disk: do not use it"
}

caller=$(pwd -P)
folder=$(dirname "$(readlink -f "$0")")
case $me:${1-} in
backy-restore: | backy-restore:-*) [ $# -gt 0 ] || { usage >&2 && exit 2; } ;;
backy-restore:*) folder=$1 && shift ;;
esac
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
cd "$folder" || die "cannot enter the folder $folder"
repository=$(pwd -P)
[ "$me" = restore.sh ] && listing=$repository/restore.sh || listing="backy-restore $repository"
[ -d revisions ] || die "there is no folder $repository/revisions. Is this a repository?"
ab='[0-9a-f][0-9a-f]' # What else is there is not ours.
for folder in revisions chunks chunks/$ab pages pages/$ab twins twins/$ab; do
    [ ! -L "$folder" ] || die "$repository/$folder is a link, and backy makes none"
done
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
'') die "there is no revision $1. See: $listing" ;;
*"$newline"*) die "more than one revision begins with $1:$newline$id" ;;
esac
disk=$2 revision=revisions/$id
case $disk in '' | *[!A-Za-z0-9._-]*) die "$disk is not the name of a disk" ;; esac
index=$revision/$disk.blocks image=$revision/$disk.img
[ -n "$(record "$id")" ] || die "$repository/$revision/revision.json is no file of at most 1 MiB"
format=$(record "$id" | sed -n 's/^  "format": \([0-9]*\),*$/\1/p' | sed 1q)
case ${format:=1} in
1 | 2) ;;
*) die "$id has format $format, and this script reads 1 and 2 only: update backy" ;;
esac
size=$(of_disk size) block_size=$(of_disk block_size)
[ -n "${size:+$block_size}" ] || die "there is no disk $disk in $id. See: $listing"
{ is_number "$size" && is_number "$block_size"; } ||
    die "$disk of $id cannot have such a size or block size: see $revision/revision.json"
[ -z "$(record "$id" | sed -n '/^  "trust": "distrusted"/p')" ] ||
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
    number=$(number_of "$target") && system=/sys/dev/block/$number
    capacity=$(blockdev --getsize64 "$target" 2>/dev/null) ||
        capacity=$(($(cat "$system/size") * 512))
    [ "$capacity" -ge "$size" ] ||
        die "$target is too small: it has $capacity bytes, and $disk has $size"
    in_use=$(users | sed 1q)
    [ -z "$in_use" ] || die "$in_use: end that first"
fi

# What can be checked fast is checked before the target is touched.
if [ -e "$image" ]; then
    is_plain "$image" || die "$image is a link, or no file"
    got=$(stat -Lc %s "$image")
    [ "$got" -eq "$size" ] || die "$image is damaged: it has $got bytes instead of $size"
else
    command -v zstd >/dev/null || die "zstd is not installed, and the chunks need it"
    [ "$format" -eq 2 ] || is_plain "$index" ||
        die "there is neither $repository/$image nor $repository/$index"
    blocks=$(((size + block_size - 1) / block_size)) && lines=$blocks
    last_size=$((size - (blocks - 1) * block_size))
    [ "$format" -eq 1 ] || lines=$(((blocks + 251) / 252))
    last_page=$((65 * (blocks - (lines - 1) * 252)))
    index_hash=$(of_disk index_hash) b3sum=$(command -v b3sum) chosen=''
    [ -n "$b3sum" ] || say "b3sum is not installed, so no hash of $index is checked"
    problem=$(list_problem "$index" $((65 * lines)) "$index_hash")
    if [ -n "$problem" ] && [ "$format" -eq 2 ]; then
        twin=twins/${index_hash%"${index_hash#??}"}/$index_hash
        twin_problem=$(list_problem "$twin" $((65 * lines)) "$index_hash")
        [ -z "$twin_problem" ] || die "$index $problem, and its twin $twin $twin_problem"
        say "$index $problem: its twin is used instead, $twin"
        index=$twin problem=''
    fi
    [ -z "$problem" ] || die "$index $problem"
    if [ "$format" -eq 2 ] && ! all_pages_are_good; then
        chosen=$(choose_pages)
        case $chosen in *neither*)
            die "FAILED: no good copy is left of these pages. $target has not been touched" ;;
        esac
        from_twins=$(printf '%s\n' "$chosen" | sed '/^pages/d' | sort -u | wc -l)
        [ "$from_twins" -eq 0 ] ||
            say "missing or damaged pages of $disk, whose twins are used instead: $from_twins"
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
    case $(write_chunks) in
    '') ;;
    *"too much"* | *"zstd 153"*) name_bad_blocks && give_up "chunks of $disk unpack to too much" ;;
    # zstd counts the errors of writing from 70 on; those above 128 are signals.
    *"no write"* | *"zstd "[7-9][0-9]* | *"zstd "1[0-9][0-9]*)
        give_up "cannot write $target. Is it full?"
        ;;
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
