# Words and colours that the shell scripts in tools/ share. Sourced, never run.
# shellcheck shell=bash

REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
VENV="$REPO/.venv"

if [ -t 2 ] && [ -z "${NO_COLOR:-}" ]; then
    BOLD=$'\e[1m' RED=$'\e[31m' PLAIN=$'\e[0m'
else
    BOLD='' RED='' PLAIN=''
fi

# Everything that is said goes to stderr; stdout belongs to results.
say() { printf '%s%s:%s %s\n' "$BOLD" "${0##*/}" "$PLAIN" "$*" >&2; }

# die MESSAGE [HINT]…: one line of what went wrong, then what to do about it.
die() {
    printf '%s%s: error:%s %s\n' "$RED" "${0##*/}" "$PLAIN" "$1" >&2
    shift
    local hint
    for hint in "$@"; do printf '%s: hint: %s\n' "${0##*/}" "$hint" >&2; done
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# as_root COMMAND…: run it as root, with sudo when we are not.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        die "root is needed for: $*" "run this as root, or install sudo"
    fi
}
