#!/bin/sh
# Builds the kernels with ASan and UBSan in a temporary folder and runs tests/kernels on them.
# Needs gcc, Python's headers, and a virtual environment with the `test` and `dev` extras active.
# Arguments go to pytest. PYTHON and CC may name others than python and gcc.
set -eu

python=${PYTHON:-python}
CC=${CC:-gcc}
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

mkdir "$work/src" "$work/tests"
cp -R "$root/setup.py" "$root/pyproject.toml" "$root/LICENSE" "$root/ext" "$work/"
cp -R "$root/src/standby" "$work/src/"
cp -R "$root/tests/kernels" "$root/tests/net" "$root"/tests/*.py "$work/tests/"
find "$work/src" -name '*.so' -delete
: > "$work/README.md"

cd "$work"
# The last level given counts: -O3 takes minutes to compile here and finds no more.
printf '#!/bin/sh\nexec %s "$@" -O1\n' "$CC" > "$work/cc"
chmod +x "$work/cc"
flags="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1"
CC="$work/cc" LDSHARED="$work/cc -shared" CFLAGS="$flags" LDFLAGS="$flags" \
    "$python" setup.py -q build_ext --inplace

# Python itself is not instrumented: the runtime has to be there first. PYTHONMALLOC=malloc puts
# red zones around bytes objects too. Python keeps memory until it ends, so leaks say nothing.
preload=$("$CC" -print-file-name=libasan.so)
case $preload in
/*) ;;
*) echo "run_sanitized: $CC has no libasan.so" >&2; exit 1 ;;
esac
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=0
export UBSAN_OPTIONS=print_stacktrace=1
export PYTHONMALLOC=malloc PYTHONPATH="$work/src" LD_PRELOAD="$preload"
"$python" -c "
from pathlib import Path
from standby._kernels import blocks
assert Path(blocks.__file__).is_relative_to('$work'), blocks.__file__
"
"$python" -m pytest -q -p no:cacheprovider --capture=sys --ignore=tests/kernels/test_build.py \
    --ignore=tests/kernels/test_rolling_speed.py tests/kernels "$@"
