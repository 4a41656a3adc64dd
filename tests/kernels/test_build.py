"""How the kernels are built: without warnings, and with a clear word where there is no compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import judging

ROOT = Path(__file__).resolve().parents[2]
EXT = ROOT / "ext"
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
KERNELS = sorted(path.stem for path in EXT.glob("*.pyx"))
STRICT = ["-Wall", "-Wextra", "-Wconversion", "-Wno-unused-function", "-Werror"]


def run(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=os.environ | more, capture_output=True, text=True, check=False, cwd=ROOT
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_cython_has_neither_warnings_nor_performance_hints(tmp_path: Path, kernel: str):
    judging.require_module("Cython")
    source = shutil.copy(EXT / f"{kernel}.pyx", tmp_path)
    done = run(
        sys.executable, "-m", "cython", "-3", "--warning-errors", "--warning-extra",
        "-I", str(EXT), source, "-o", str(tmp_path / "out.c"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "hint" not in done.stderr
    assert "warning" not in done.stderr


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("header", sorted(path.name for path in (EXT / "include").glob("*.h")))
def test_headers_compile_alone_without_warnings(tmp_path: Path, compiler: str, header: str):
    if header.endswith("_body.h"):
        return  # a part of another header, which includes it once per variant
    unit = tmp_path / "unit.c"
    unit.write_text(f'#include "{header}"\nint standby_unit;\n')
    done = run(
        compiler, "-std=c11", "-O3", *STRICT, f"-I{EXT / 'include'}",
        "-c", str(unit), "-o", os.devnull,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif("clang" not in COMPILERS, reason="needs clang, which compiles for other CPUs")
@pytest.mark.parametrize("target", ["aarch64-linux-gnu", "s390x-linux-gnu", "i686-linux-gnu"])
def test_headers_compile_for_machines_without_vector_variants(tmp_path: Path, target: str):
    (tmp_path / "string.h").write_text(
        "#include <stddef.h>\n"
        "void *memcpy(void *, const void *, size_t);\nvoid *memset(void *, int, size_t);\n"
        "void *memmove(void *, const void *, size_t);\n"
        "int memcmp(const void *, const void *, size_t);\n"
    )
    unit = tmp_path / "unit.c"
    unit.write_text(
        '#include "blocks.h"\n_Static_assert(BLOCKS_VARIANTS == 1, "scalar only");\n'
        '#include "keyed.h"\n_Static_assert(KEYED_VARIANTS == 1, "scalar only");\n'
        '#include "rolling.h"\n_Static_assert(ROLLING_VARIANTS == 1, "scalar only");\n'
        '#include "wan_cache.h"\n'
    )
    done = run(
        "clang", f"--target={target}", "-ffreestanding", "-O2", *STRICT, f"-I{tmp_path}",
        f"-I{EXT / 'include'}", "-S", str(unit), "-o", str(tmp_path / "unit.s"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_build_without_a_compiler_fails_and_says_what_is_missing(tmp_path: Path):
    judging.require_module("Cython")
    if not (ROOT / "setup.py").is_file():
        pytest.skip("not a source tree")
    done = run(
        sys.executable, "setup.py", "-q", "build_ext", "--force",
        "--build-temp", str(tmp_path / "temp"), "--build-lib", str(tmp_path / "lib"),
        CC=str(tmp_path / "no-such-compiler"),
    )  # fmt: skip
    assert done.returncode != 0
    assert "A C compiler and Python's headers are needed" in done.stderr
    assert list(tmp_path.rglob("*.so")) == []
