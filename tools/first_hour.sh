#!/usr/bin/env bash
# Types the commands of README.md and docs/quickstart.md into a fresh clone, word for word and in their order, and ends
# at the first that fails. The commands are those in the fences of the two pages; they stand nowhere else.
#   tools/first_hour.sh [--skip COMMAND]...    types them; the clone is removed when all went well
#   tools/first_hour.sh --list                 prints them instead, a line each: the mark of its fence, a tab, the command
# The clone has the commits of this repository, and none of the changes that are not committed. `make demo` makes a .venv
# in it, so that all takes half an hour; with STEPS=3 in the environment, `make demo` is a smoke run.
#
# A fence of commands starts with ```sh. A second word marks commands that cannot be typed as they stand:
#   gpu      needs a GPU: a launch script is typed with DRY_RUN=1, another command is not typed
#   hub      downloads from the hub: not typed
#   docker   needs a container engine: not typed
#   yours    has names and options of the reader: not typed
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
PAGES=(README.md docs/quickstart.md)

die() {
    printf 'first hour: %s\n' "$*" >&2
    exit 1
}

commands() { # a line each, MARK<tab>COMMAND; lines that end in \ are joined, those of a comment alone are left out
    awk '
        /^```/ { fence = !fence; sh = fence && $1 == "```sh"; mark = NF > 1 ? $2 : "typed"; next }
        sh && !/^ *(#|$)/ {
            if (command != "") sub(/^ +/, "")
            command = command $0
            if (sub(/\\$/, "", command)) next
            print mark "\t" command
            command = ""
        }' "${PAGES[@]}"
}

without_comment() { sed -E 's/ +# .*$//' <<<"$1"; }

skipped=()
while [ $# -gt 0 ]; do
    case $1 in
        --list)
            commands
            exit
            ;;
        --skip)
            [ $# -ge 2 ] || die "--skip needs a command"
            commands | cut -f 2 | sed -E 's/ +# .*$//' | grep -qxF -- "$2" || die "--skip '$2': no such command in ${PAGES[*]}"
            skipped+=("$2")
            shift 2
            ;;
        *) die "$1 is not an option; use --skip COMMAND or --list" ;;
    esac
done

is_skipped() {
    local command
    for command in "${skipped[@]}"; do
        [ "$command" != "$1" ] || return 0
    done
    return 1
}

[ -z "$(git status --porcelain)" ] || echo "first hour: changes that are not committed are not in the clone" >&2
CLONE=$(mktemp -d "${TMPDIR:-/tmp}/first_hour.XXXXXX")
git clone --quiet . "$CLONE" || die "the repository could not be cloned"
cd "$CLONE" || exit
# Nothing of a make that may have started this reaches the reader's.
unset MAKEFLAGS MAKEOVERRIDES MAKELEVEL MFLAGS

results=()
finished=no
at_the_end() {
    printf '\nseconds    exit  command\n'
    printf '%s\n' "${results[@]}"
    if [ "$finished" = yes ]; then
        rm -rf "$CLONE"
        echo "first hour: all went well, $SECONDS s"
    else
        echo "first hour: it ended at the last command above; the clone is left in $CLONE" >&2
    fi
}
trap at_the_end EXIT

not_typed() { # not_typed WHY COMMAND
    printf '\nnot typed (%s): %s\n' "$1" "$2"
    results+=("$(printf '%7s  %6s  %s' - "$1" "$2")")
}

# In this very shell, so that what a command sets holds for the next one. The shell of a reader has no options set.
type_in() { # type_in COMMAND
    local start=$SECONDS code=0
    printf '\n$ %s\n' "$1"
    set +uo pipefail
    eval "$1" </dev/null || code=$?
    set -uo pipefail
    printf '[%s s, exit %s]\n' $((SECONDS - start)) "$code"
    results+=("$(printf '%7s  %6s  %s' $((SECONDS - start)) "$code" "$1")")
    [ "$code" = 0 ] || exit 1
}

mapfile -t lines < <(commands)
[ ${#lines[@]} -gt 0 ] || die "no command in ${PAGES[*]}"
for line in "${lines[@]}"; do
    mark=${line%%$'\t'*}
    command=${line#*$'\t'}
    plain=$(without_comment "$command")
    if is_skipped "$plain"; then
        not_typed skip "$command"
        continue
    fi
    case $mark in
        typed) type_in "$command" ;;
        gpu)
            if [[ $command == *"bash examples/run_"* ]]; then
                type_in "DRY_RUN=1 $command"
            else
                not_typed gpu "$command"
            fi
            ;;
        hub | docker | yours) not_typed "$mark" "$command" ;;
        *) die "\`\`\`sh $mark: the marks are gpu, hub, docker and yours" ;;
    esac
done
finished=yes
