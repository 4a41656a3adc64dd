"""Builds the Cython kernels; everything else about the package is in pyproject.toml.

Each name in KERNELS is `ext/<name>.pyx` over C loops in `ext/include`, and becomes
`standby._kernels.<name>`. There is no pure-Python fallback: without a C compiler the build fails.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError, PlatformError

KERNELS = ("blocks", "keyed", "rolling", "wan_cache")

HEADERS = sorted(path.as_posix() for path in Path("ext/include").glob("*.h"))
FLAGS = ["/O2"] if sys.platform == "win32" else ["-O3", "-fno-strict-aliasing"]


class BuildKernels(build_ext):
    """`build_ext` of several kernels at a time, that says in plain words when no working C compiler
    is there."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extensions(self) -> None:
        try:
            super().build_extensions()
        except (CompileError, LinkError, PlatformError) as exc:
            raise SystemExit(
                f"\nstandby: its kernels could not be compiled: {exc}\n"
                "A C compiler and Python's headers are needed "
                "(Debian: apt install gcc python3-dev; Windows: Visual Studio Build Tools).\n"
            ) from exc


setup(
    ext_modules=cythonize(
        [
            Extension(
                f"standby._kernels.{name}",
                [f"ext/{name}.pyx"],
                include_dirs=["ext/include"],
                depends=HEADERS,
                extra_compile_args=FLAGS,
            )
            for name in KERNELS
        ],
        build_dir="build/cython",
        compiler_directives={"language_level": 3},
    ),
    cmdclass={"build_ext": BuildKernels},
)
