# Makes a virtual environment once and installs packages into it. The other scripts source this file.
#
#   make_environment FOLDER PIP-ARGUMENTS...     a second call with the same arguments does nothing

PYTHON=${PYTHON:-python3}
# A CPU build where the index has one. Without the pin, pip may install gigabytes of CUDA.
TORCH=${TORCH:-torch==2.13.0}

make_environment() {
    local folder=$1 stamp
    shift
    stamp=$(printf '%s\n' "$@" | cat - pyproject.toml | cksum)
    if [ "$(cat "$folder/installed" 2>/dev/null)" = "$stamp" ]; then
        return
    fi
    if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "expected Python 3.10 or newer, found $("$PYTHON" --version); set PYTHON" >&2
        exit 1
    fi
    rm -f "$folder/installed"
    [ -x "$folder/bin/python" ] || "$PYTHON" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet "$@"
    echo "$stamp" >"$folder/installed"
}
