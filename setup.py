"""Thin: CMakeLists.txt describes the native build, this runs it with ninja. All else is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

SOURCE = Path(__file__).resolve().parent


def missing_tools() -> str | None:
    """What CMake itself needs and this machine lacks, as one line; None when all is there."""
    missing = [tool for tool in ("cmake", "ninja") if not shutil.which(tool)]
    if not missing:
        return None
    tools = " and ".join(missing)
    return f"every native library: no {tools}; pip install {' '.join(missing)}, then install evoworld again"


def cmake_arguments(package: Path) -> list[str]:
    """The settings that CMakeLists.txt cannot know: who installs, and into which package."""
    return [
        "-GNinja",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",  # named, as an isolated build's ninja is gone the next time
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DEVOWORLD_PACKAGE_DIR={package.as_posix()}",
    ]


class CMakeBuild(build_ext):
    """Runs CMake: into the source tree for an editable installation, else into the folder that becomes the wheel."""

    def run(self) -> None:
        in_place = self.inplace or self.editable_mode
        package = SOURCE / "evoworld" if in_place else Path(self.build_lib).resolve() / "evoworld"
        build = SOURCE / "build" / "native" if in_place else Path(self.build_temp).resolve()
        (package / "lib").mkdir(parents=True, exist_ok=True)
        left_out = package / "lib" / "left_out.txt"
        missing = missing_tools()
        if missing:
            left_out.write_text(missing)
        else:
            environment = dict(os.environ)
            environment.pop("CMAKE_GENERATOR", None)
            subprocess.run(["cmake", "-S", SOURCE, "-B", build, *cmake_arguments(package)], check=True, env=environment)
            subprocess.run(["cmake", "--build", build], check=True)
        for line in left_out.read_text().splitlines():
            print(f"evoworld: left out: {line}", file=sys.stderr, flush=True)

    def get_outputs(self) -> list[str]:
        package = Path(self.build_lib) / "evoworld"
        return [str(path) for pattern in ("lib/*", "_C.*") for path in package.glob(pattern)]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


setup(
    packages=[*find_packages(include=["evoworld", "evoworld.*"]), "evoworld.kernels"],
    package_dir={"evoworld.kernels": "kernels"},
    ext_modules=[Extension("evoworld._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
