# Sourced by launch.sh: checks of variables, and --help.

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# one_of NAME VALUE...: the variable NAME holds one of the values.
one_of() {
    local name=$1 value
    shift
    for value in "$@"; do
        [[ ${!name} == "$value" ]] && return
    done
    die "$name=${!name}: use one of $*"
}

# positive NAME...: the variables hold integers above 0.
positive() {
    local name
    for name in "$@"; do
        [[ ${!name} =~ ^[1-9][0-9]*$ ]] || die "$name=${!name}: use an integer above 0"
    done
}

# natural NAME...: the variables hold integers of 0 or more.
natural() {
    local name
    for name in "$@"; do
        [[ ${!name} =~ ^(0|[1-9][0-9]*)$ ]] || die "$name=${!name}: use an integer of 0 or more"
    done
}

# number NAME CONDITION WORDS: the variable NAME holds a number x that fulfills awk's CONDITION; WORDS say which.
number() {
    [[ ${!1} =~ ^([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$ ]] && awk "BEGIN { x = ${!1}; exit !($2) }" ||
        die "$1=${!1}: use a number $3"
}

# show_help FILE...: the comment at the head of the first, and the variables that the files take from the environment:
# lines NAME=${NAME:-default}  # meaning. What holds for a variable that is not set yet stands there in [].
show_help() {
    local line name meaning value shown=
    awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$1"
    echo
    echo "Variables, with what this command gives them; set others before it, as in ALGO=grpo bash ${0##*/}:"
    while read -r line; do
        name=${line%%=*}
        [[ $shown != *" $name "* ]] || continue
        shown+=" $name "
        meaning=${line##*\}  # }
        value=${!name:-}
        if [[ $meaning == \[* ]]; then
            value=${value:-${meaning%%]*}]}
            meaning=${meaning#*] }
        fi
        printf '  %s\n' "$name=$value"
        printf '      %s\n' "$meaning"
    done < <(sed -nE 's/^ *([A-Z_]+)=(\$\{\1:-.*\}  # .+)$/\1=\2/p' "$@")
}
