"""Prints "directory;version" of the torch in this interpreter's environment, or nothing. Imports no torch.

pip's build isolation hides the environment from sys.path but not from sysconfig, so both are looked at.
"""

import re
import site
import sys
import sysconfig
from pathlib import Path


def candidates() -> list[Path]:
    """Folders that may hold packages of this environment, the most specific first."""
    paths = sysconfig.get_paths()
    folders = [*sys.path, paths["purelib"], paths["platlib"]]
    if site.ENABLE_USER_SITE is not False:
        folders.append(site.getusersitepackages())
    config = Path(sys.prefix) / "pyvenv.cfg"
    if config.is_file() and re.search(r"include-system-site-packages\s*=\s*true", config.read_text()):
        folders.append(sysconfig.get_path("purelib", vars={"base": sys.base_prefix, "platbase": sys.base_prefix}))
    return [Path(folder) for folder in dict.fromkeys(folders) if folder]


def find_torch(folders: list[Path]) -> tuple[Path, str] | None:
    """The first folder with torch's stable headers, and that torch's version without its local part."""
    for folder in folders:
        header = folder / "torch" / "include" / "torch" / "csrc" / "stable" / "library.h"
        version = folder / "torch" / "version.py"
        if header.is_file() and version.is_file():
            match = re.search(r"__version__ = '([0-9.]+)", version.read_text())
            if match:
                return folder / "torch", match.group(1).rstrip(".")
    return None


if __name__ == "__main__":
    found = find_torch(candidates())
    if found:
        print(f"{found[0].as_posix()};{found[1]}")
