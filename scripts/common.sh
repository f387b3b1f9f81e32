# Sourced by the scripts beside it.

# need_packages COMMAND:PACKAGE...: installs the Debian packages of commands that are missing.
need_packages() {
    local missing=() entry
    for entry in "$@"; do
        command -v "${entry%%:*}" >/dev/null || missing+=("${entry#*:}")
    done
    [ ${#missing[@]} -eq 0 ] || install_packages "${missing[@]}"
}

install_packages() {
    command -v apt-get >/dev/null || { echo "please install: $*" >&2; return 1; }
    echo "installing: $*"
    as_root apt-get update -qq </dev/null >/dev/null
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@" </dev/null >/dev/null
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}
