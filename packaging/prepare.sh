#!/bin/sh
# Brings a Debian 12 machine to where `make demo` or `make test` can run: the Debian packages that are missing, a virtual
# environment in build/venv with what pyproject.toml names, and the C engine. What is there already is left alone, nothing
# is removed, no service is installed or started, and a second run does nothing.
#
#   packaging/prepare.sh demo|test|bench
#
# PYTHON names another interpreter than python3; build/prepare.log holds what apt, pip and the compiler said.
set -eu
umask 022
cd "$(dirname "$0")/.."
goal=${1:-demo}
python=${PYTHON:-python3}
venv=build/venv
stamps=build/stamps
log=build/prepare.log

say() { echo "prepare: $*"; }

fail() {
    echo "prepare: $*" >&2
    exit 1
}

# Run a step with its output in the log; show the log's end where it fails.
step() {
    what=$1
    shift
    say "$what"
    echo "== $what: $*" >> "$log"
    "$@" >> "$log" 2>&1 && return
    tail -n 20 "$log" >&2
    fail "$what: failed; the end of $log is above"
}

hash_of() { cat "$@" | sha256sum | cut -d' ' -f1; }

# Whether a stamp says that this was done with these contents.
fresh() { [ "$(cat "$stamps/$1" 2>/dev/null)" = "$2" ]; }

stamp() { echo "$2" > "$stamps/$1"; }

packages_of() {
    echo "iptables iproute2 ethtool gcc libc6-dev libnetfilter-queue-dev"
    case $goal in test) echo "clang libclang-rt-dev" ;; esac    # the fuzz test is libFuzzer's
    # The interpreter's own parts, where Debian's python3 is the one in use; any other brings them itself.
    if [ "$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable).startswith("/usr/bin/"))')" = True ]; then
        echo "python3-dev python3-venv"
    fi
}

missing_of() {
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q "ok installed" || echo "$package"
    done
}

install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    options="--yes --no-install-recommends --no-remove -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300"
    # shellcheck disable=SC2086
    apt-get install $options "$@" && return
    # The index is missing or older than the archive.
    apt-get update
    # shellcheck disable=SC2086
    apt-get install $options "$@"
}

prepare_packages() {
    # shellcheck disable=SC2046
    missing=$(missing_of $(packages_of) | tr '\n' ' ')
    [ -z "$missing" ] && return
    [ "$(id -u)" = 0 ] || fail "Debian packages are missing: $missing. Install them, or run this as root."
    # shellcheck disable=SC2086
    step "installing Debian packages: $missing" install_packages $missing
}

make_environment() {
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --disable-pip-version-check "setuptools>=68" wheel "cffi>=2.0"
}

install_dependencies() {
    "$venv/bin/python" - > build/requirements.txt <<'END'
import tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
print("\n".join(project["dependencies"] + project["optional-dependencies"]["test"]))
END
    "$venv/bin/python" -m pip install --disable-pip-version-check -r build/requirements.txt
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
}

prepare_environment() {
    "$venv/bin/python" -c "import pip" 2>/dev/null || step "making $venv" make_environment
    wanted=$( (hash_of pyproject.toml setup.py packaging/prepare.sh && "$venv/bin/python" -V) | tr '\n' ' ')
    fresh environment "$wanted" && return
    step "installing Python packages into $venv (a minute or two)" install_dependencies
    stamp environment "$wanted"
}

prepare_engine() {
    wanted=$(hash_of csrc/*.c csrc/*.h csrc/*.def csrc/*.py setup.py)
    ls nfqguard/_engine*.so > /dev/null 2>&1 && fresh engine "$wanted" && return
    step "compiling the engine" "$venv/bin/python" setup.py build_ext --inplace --force
    stamp engine "$wanted"
}

case $goal in demo | test | bench) ;; *) fail "what for? demo, test or bench, not $goal" ;; esac
command -v "$python" > /dev/null || fail "there is no $python: Python 3.11 or later is needed"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$python is older than Python 3.11"
mkdir -p "$stamps"
exec 9> build/prepare.lock
flock 9
prepare_packages
prepare_environment
prepare_engine
