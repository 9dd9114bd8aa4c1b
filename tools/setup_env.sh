#!/bin/sh
# Makes .venv from requirements-dev.lock: what requirements.lock has, which deployments install, and the tools of tests and
# checks. Runs again only when the lock or pyproject.toml has changed.
#
# What it needs of the machine: Python 3.11 to 3.13 with venv, and Java 17 or later for Spark. As root on Debian or Ubuntu
# it installs what is missing; otherwise it says what to install, and stops. With --tests it sees besides to
# what some tests drive: Chromium, with the library that Playwright wants, and docker-compose, of which only `config` is used. Where one
# of these is missing and cannot be installed, it says so, and its tests are skipped.
set -eu
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }

can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; }

# install_first REASON PACKAGE...: installs the first of the packages that the machine's releases have.
install_first() {
    reason=$1
    shift
    if ! can_install; then
        say "pinlake needs $reason. On Debian or Ubuntu: sudo apt-get install $1"
        exit 1
    fi
    say "installing $reason ..."
    apt-get update -qq >&2 || say "apt-get update failed; trying with the lists that are there"
    for package in "$@"; do
        # shellcheck disable=SC2086 # a name may stand for several packages
        if DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $package >/dev/null 2>&1; then
            return 0
        fi
    done
    say "none of these could be installed: $*. pinlake needs $reason."
    exit 1
}

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; }

find_python() {
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null 2>&1 && fits "$candidate"; then
            printf '%s' "$candidate"
            return 0
        fi
    done
    return 1
}

python=$(find_python) || {
    install_first "Python 3.11, 3.12 or 3.13" "python3 python3-venv" "python3.11 python3.11-venv"
    python=$(find_python) || install_first "Python 3.11, 3.12 or 3.13" "python3.11 python3.11-venv" "python3.12 python3.12-venv"
    python=$(find_python) || { say "pinlake needs Python 3.11, 3.12 or 3.13; this machine's is older"; exit 1; }
}
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$python" -c 'import venv, ensurepip' >/dev/null 2>&1 || install_first "Python's venv module" "python$version-venv" python3-venv

java_major() {
    "${JAVA_HOME:+$JAVA_HOME/bin/}java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1
}
major=$(java_major || true)
if [ "${major:-0}" -lt 17 ]; then
    [ -z "${JAVA_HOME:-}" ] || { say "JAVA_HOME=$JAVA_HOME is no Java 17 or later, which Spark needs. Unset or correct it."; exit 1; }
    install_first "Java 17 or later, for Spark" openjdk-17-jre-headless openjdk-21-jre-headless
fi

if [ "${1:-}" = --tests ]; then
    # In shells of their own, which alone end where nothing can be installed.
    if ! command -v chromium >/dev/null 2>&1 && ! command -v chromium-browser >/dev/null 2>&1; then
        (install_first "Chromium, for the tests of the assistant's page," chromium chromium-browser) || say "those tests will be skipped"
    fi
    # A bare Debian lacks it, and nothing of Chromium's asks for it: the program that drives Chromium does.
    if ! PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep -q 'libatomic\.so\.1'; then
        (install_first "libatomic, for Playwright" libatomic1) || say "the tests of the assistant's page need it"
    fi
    if ! command -v docker-compose >/dev/null 2>&1 && ! command -v podman >/dev/null 2>&1; then
        (install_first "docker-compose, to read docker-compose.yml" docker-compose) || say "docker-compose.yml is read by nobody but us"
    fi
fi

stamp=.venv/.made-from
wanted=$(cat requirements-dev.lock pyproject.toml | sha256sum | cut -d ' ' -f 1)-$version
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi
free_kib=$(df -Pk . | awk 'NR == 2 {print $4}')
if [ "$free_kib" -lt 12000000 ] && [ ! -d .venv ]; then
    say "the environment takes about 8 GB, and $((free_kib / 1048576)) GB are free here: make room first"
    exit 1
fi
say "making .venv from requirements-dev.lock (about 8 GB, most of it PyTorch; a few minutes on the first time) ..."
[ -x .venv/bin/python ] && fits .venv/bin/python || { rm -rf .venv && "$python" -m venv .venv; }
# uv installs ten times faster than pip. It is taken from the same lock, by hash.
bootstrap=$(mktemp)
trap 'rm -f "$bootstrap"' EXIT
awk '/^uv==/ {found = 1} found {print} found && !/\\$/ {exit}' requirements-dev.lock >"$bootstrap"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r "$bootstrap"
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}" UV_LINK_MODE="${UV_LINK_MODE:-hardlink}"
# sync removes what an older lock had. Bytecode is compiled now, so that no process pays for it later.
.venv/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes --compile-bytecode requirements-dev.lock
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .

# Spark's JVM starts faster from an archive of its classes (class data sharing). If that fails, it only starts slower.
archive=.venv/spark.jsa
rm -f "$archive" "$archive.new"
if ! PATH="$PWD/.venv/bin:$PATH" PYSPARK_PYTHON="$PWD/.venv/bin/python" SPARK_LOCAL_IP=127.0.0.1 .venv/bin/spark-submit \
    --conf "spark.driver.extraJavaOptions=-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:ArchiveClassesAtExit=$PWD/$archive.new" \
    --conf spark.ui.enabled=false --conf spark.sql.codegen.wholeStage=false --conf spark.sql.shuffle.partitions=2 \
    tools/warm_spark.py >/dev/null 2>&1 || ! mv "$archive.new" "$archive"; then
    say "no archive of Spark's classes could be made; Spark will start a little slower"
fi
printf '%s' "$wanted" >"$stamp"
say "made .venv with Python $version"
