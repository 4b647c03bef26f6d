"""Builds the CPU kernels as part of the normal install; everything else is in pyproject.toml.

One shared library, no link to Python or torch: the same source compiled once per instruction set,
the best one chosen when it is loaded. Without a compiler the package installs all the same, and
says what is missing.
"""

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("vllm_headaware/kernels/cpu")
COMMON = [
    *("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-ffp-contract=fast"),
    *(
        "-fno-math-errno",
        "-fno-trapping-math",
        "-Wall",
        "-Wextra",
        "-Wno-maybe-uninitialized",
        "-Wno-uninitialized",
    ),
]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, *(f"-mavx512{x}" for x in ("f", "bw", "vl", "dq", "vnni"))]
X86_SETS = {"avx2": AVX2, "avx512": AVX512}


class BuildKernels(build_ext):
    """Compiles attend.cpp for every instruction set of this machine's architecture."""

    def build_extension(self, ext: Extension) -> None:
        sets = X86_SETS if platform.machine() in ("x86_64", "AMD64") else {}
        objects = []
        # baseline first: of templates that all builds contain, the linker keeps the first.
        for name, flags in {"baseline": [], **sets}.items():
            objects += self.compiler.compile(
                [str(SOURCES / "attend.cpp")],
                output_dir=str(Path(self.build_temp) / name),
                macros=[("HA_ENTRY", f"ha_attend_{name}")],
                extra_postargs=[*COMMON, *flags],
                depends=ext.depends,
            )
        objects += self.compiler.compile(
            [str(SOURCES / "dispatch.cpp")],
            output_dir=self.build_temp,
            macros=[(f"HA_HAVE_{name.upper()}", "1") for name in sets],
            extra_postargs=COMMON,
            depends=ext.depends,
        )
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), extra_postargs=["-fopenmp"], target_lang="c++"
        )

    def run(self) -> None:
        super().run()
        missing = [
            e.name for e in self.extensions if not Path(self.get_ext_fullpath(e.name)).exists()
        ]
        if missing:
            print(
                "vllm-headaware: the CPU kernels were not built, see the compiler's message above."
                " Install g++ and install again; until then head classes use vLLM's own attention"
                " op, and int8 and int4 KV blocks are not available.",
                file=sys.stderr,
            )


setup(
    ext_modules=[
        Extension(
            "vllm_headaware.kernels.cpu._native",
            [str(SOURCES / "attend.cpp"), str(SOURCES / "dispatch.cpp")],
            depends=[str(path) for path in SOURCES.glob("*.h")],
            language="c++",
            optional=True,
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
    # One wheel for every Python from 3.10 on: the library does not link it.
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
