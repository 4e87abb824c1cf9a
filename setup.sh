# For the other scripts. `setup` makes .venv, installs what requirements*.txt ask for, activates it.
# An existing .venv is reused until one of the files changes. -I: no module of the current folder.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

setup() {  # setup REQUIREMENTS_FILE...
    local python=${PYTHON:-python3} file
    if ! command -v "$python" >/dev/null; then
        echo "setup: $python not found; install Python 3.10 or newer, or set PYTHON" >&2
        return 1
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "setup: $python is $("$python" --version 2>&1); Python 3.10 or newer is needed (set PYTHON)" >&2
        return 1
    fi
    if ! "$python" -I -c 'import venv, ensurepip' 2>/dev/null; then
        local version
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        echo "setup: $python has no venv module; on Debian or Ubuntu: apt install python$version-venv" >&2
        return 1
    fi
    [ -x "$here/.venv/bin/python" ] || "$python" -I -m venv "$here/.venv"
    for file in "$@"; do
        local stamp="$here/.venv/.installed-$file"
        if ! cmp -s "$here/$file" "$stamp"; then
            echo "setup: installing $file into .venv" >&2
            "$here/.venv/bin/python" -I -m pip install --quiet --disable-pip-version-check \
                -r "$here/$file" >&2
            cp "$here/$file" "$stamp"
        fi
    done
    export PATH="$here/.venv/bin:$PATH"
}

check_variables() { # of run.sh and study.sh; `fail` is theirs
    local name
    for name in EPOCHS TUNE_EPOCHS; do
        [[ ${!name:-1} =~ ^[1-9][0-9]*$ ]] || fail "$name=${!name} is no number of epochs"
    done
    for name in ONE_TRAINING CONTROLS; do
        [[ ${!name:-0} == [01] ]] || fail "$name=${!name} is neither 0 nor 1"
    done
}
