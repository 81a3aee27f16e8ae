#!/usr/bin/env bash
# Shows backy at work on a small disk with a real file system: make demo
#
# Works in a temporary folder, which it removes, and touches nothing else. Exits with 0 only when
# every restored disk is the same, byte for byte, as the disk that was backed up.
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
backy_program=$(realpath -s "${BACKY:-$project/.venv/bin/backy}")
PATH=$PATH:/usr/sbin:/sbin # Debian keeps mkfs there, out of an ordinary user's way.

bold='' dim='' red='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR-}" ]; then
    bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' plain=$'\e[0m'
fi

say() { printf '\n%s%s%s\n' "$dim" "$*" "$plain"; }
give_up() {
    printf '%sdemo: %s%s\n' "$red" "$*" "$plain" >&2
    exit 1
}
run() { # Shows a command, then runs it.
    printf '%s$ %s%s\n' "$bold" "$1" "$plain"
    eval "$1"
}
run_to_fail() { # Does the same with a command that is to end with the exit code $1.
    local code=0
    run "$2" || code=$?
    echo "exit code $code"
    [ "$code" -eq "$1" ] || give_up "exit code $1 was expected"
}
backy() { "$backy_program" "$@"; }

[ -x "$backy_program" ] || give_up "there is no $backy_program. Run: make install"
for program in mkfs.ext4 debugfs zstd cmp; do
    command -v "$program" >/dev/null ||
        give_up "$program is missing. Run: apt-get install e2fsprogs zstd diffutils"
done

stage=$(mktemp -d "${TMPDIR:-/tmp}/backy-demo-XXXXXX")
trap 'rm -rf "$stage"' EXIT
trap 'exit 130' INT TERM HUP
cd "$stage"
mkdir files tools
cp -r "$project/src" "$project/docs" "$project/LICENSE" files
export BACKY_BASE_DIR=$stage/backups

say "A disk of 64 MiB, with an ext4 file system and real files."
run "mkfs.ext4 -q -d files vm1.img 64M"

say "The first backup makes the repository. All that is not zero is compressed and stored."
run "backy backup vm1 --source vm1.img --tag daily"

say "A file is written into the file system of the disk. The second backup stores what changed."
head -c 3000000 /dev/urandom >report.pdf
run "debugfs -w -R 'write report.pdf report.pdf' vm1.img 2>/dev/null"
run "backy backup vm1 --tag daily"
run "backy list vm1"
run "backy diff vm1 1 0"

say "Every stored byte is read again and compared with its hash."
run "backy verify vm1"

say "The newest disk comes back, and is the same as the source."
run "backy restore vm1 restored.img"
run "cmp vm1.img restored.img"

say "The same without backy, and with no Python in the path: the script is in the repository."
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
    say "A disk of the backup server rots: three bytes of one chunk change. The source still has the block."
    chunk=$(sed 's|^..|backups/vm1/chunks/&/&|; s|$|.zst|' "$(backy find vm1)" |
        xargs ls -S | sed -n 1p) # The largest chunk of the newest revision.
    rot="printf 'rot' | dd of=$chunk bs=1 seek=50000 conv=notrunc status=none"
    run "$rot"
    run "backy verify vm1"

    say "Once more, and the source is away. verify names the blocks; restore gives all the others."
    run "mv vm1.img away.img"
    run "$rot"
    run_to_fail 6 "backy verify vm1"
    run_to_fail 6 "backy restore vm1 rest.img --keep-going"
    run "backy reports"

    say "The source is back. The next backup stores the block anew, for all revisions that need it."
    run "mv away.img vm1.img"
    run "backy backup vm1"
    run "backy verify vm1"
    run "backy restore vm1 healed.img -r 1"
    run "cmp vm1.img healed.img"
fi

say "Everything that was restored is the same as what was backed up."
