#!/usr/bin/env bash
# Shows backy at work on a small disk with a real file system: make demo
#
# Works in a temporary folder, removes it at the end, and changes nothing else. Exits with 0 only if
# every restored disk equals the disk that was backed up, byte for byte.
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
backy_program=$(realpath -s "${BACKY:-$project/.venv/bin/backy}")
PATH=$PATH:/usr/sbin:/sbin # mkfs is there, which Debian leaves out of the PATH of ordinary users.

bold='' dim='' red='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR-}" ]; then
    bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' plain=$'\e[0m'
fi

say() { printf '\n%s%s%s\n' "$dim" "$*" "$plain"; }
give_up() {
    printf '%sdemo: %s%s\n' "$red" "$*" "$plain" >&2
    exit 1
}
run() { # Show a command, then run it.
    printf '%s$ %s%s\n' "$bold" "$1" "$plain"
    eval "$1"
}
run_to_fail() { # The same for a command that must end with exit code $1.
    local code=0
    run "$2" || code=$?
    echo "exit code $code"
    [ "$code" -eq "$1" ] || give_up "expected exit code $1"
}
backy() { "$backy_program" "$@"; }

[ -x "$backy_program" ] || give_up "$backy_program does not exist. Run: make install"
for program in mkfs.ext4 debugfs zstd cmp; do
    command -v "$program" >/dev/null ||
        give_up "$program is missing. Run: apt-get install e2fsprogs zstd diffutils"
done

stage=$(mktemp -d "${TMPDIR:-/tmp}/backy-demo-XXXXXX")
trap 'rm -rf "$stage"' EXIT
trap 'exit 130' INT TERM HUP
# In a pipe too, warnings belong below the command that prints them.
exec 2>&1

printf 'This demo backs up, damages and restores a disk image, in %s,\n' "$stage"
echo "which it removes at the end. It takes about 15 seconds."

cd "$stage"
mkdir files tools
cp -r "$project/src" "$project/docs" "$project/LICENSE" files
export BACKY_BASE_DIR=$stage/backups

say "Make a disk of 64 MiB, with an ext4 file system and some files."
run "mkfs.ext4 -q -d files vm1.img 64M"

say "The first backup creates the repository. Blocks of zeroes take no space; the others are compressed."
run "backy backup vm1 --source vm1.img --tag daily"

say "Write a file into the file system on the disk. The second backup stores only what changed."
head -c 3000000 /dev/urandom >report.pdf
run "debugfs -w -R 'write report.pdf report.pdf' vm1.img 2>/dev/null"
run "backy backup vm1 --tag daily"
run "backy list vm1"
run "backy diff vm1 1 0"

say "Read every stored byte again and compare it with its hash."
run "backy verify vm1"

say "Restore the newest revision, and compare it with the source."
run "backy restore vm1 restored.img"
run "cmp vm1.img restored.img"

say "Restore again without backy and without Python, with the script in the repository."
for program in sh sed xargs zstd basename cat cp dd dirname ls readlink sort stat tail wc b3sum; do
    ! command -v "$program" >/dev/null || ln -s "$(command -v "$program")" tools
done
run "env -i PATH=\$PWD/tools \$PWD/backups/vm1/restore.sh"
run "env -i PATH=\$PWD/tools \$PWD/backups/vm1/restore.sh latest vda by-script.img"
run "cmp vm1.img by-script.img"
run "debugfs -R 'dump report.pdf found.pdf' by-script.img 2>/dev/null"
run "cmp report.pdf found.pdf"

# Only the store "chunks" has chunks; on XFS or btrfs the demo ends here.
if [ -d backups/vm1/chunks ]; then
    say "Damage the backup: overwrite three bytes of one chunk. The source still has that block, so verify heals it."
    chunk=$(sed 's|^..|backups/vm1/pages/&/&|' "$(backy find vm1)" | xargs cat |
        sed 's|^..|backups/vm1/chunks/&/&|; s|$|.zst|' |
        xargs ls -S | sed -n 1p) # The largest chunk of the newest revision.
    rot="printf 'rot' | dd of=$chunk bs=1 seek=50000 conv=notrunc status=none"
    run "$rot"
    run "backy verify vm1"

    say "The same damage, but now the source is gone. verify names the block; restore writes all the others."
    run "mv vm1.img away.img"
    run "$rot"
    run_to_fail 6 "backy verify vm1"
    run_to_fail 6 "backy restore vm1 rest.img --keep-going"
    run "backy reports"

    say "The source is back. The next backup stores the block again, for all revisions that need it."
    run "mv away.img vm1.img"
    run "backy backup vm1"
    run "backy verify vm1"
    run "backy restore vm1 healed.img -r 1"
    run "cmp vm1.img healed.img"
fi

say "Every restored disk equals the disk that was backed up."
