"""The native build: stable ABI, one version, honest facts, and a plain word about what is left out."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

import evoworld
from benchmarks.gpu.machine_code import find_tool
from evoworld import _native, info
from evoworld.ops.backend import OPS

SOURCE = Path(__file__).resolve().parent.parent
LIBRARIES = sorted((Path(evoworld.__file__).parent / "lib").glob("*.so"))
needs_compiler = pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "c++")), reason="there is no C++ compiler")


def symbols(library: Path, *options: str) -> list[tuple[str, str]]:
    """The dynamic symbols of a library: nm's letter for the kind, and the demangled name."""
    lines = subprocess.run(["nm", "-DC", *options, library], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^[0-9a-f ]+ ([A-Za-z]) (.*)$", lines, re.MULTILINE)


@needs_compiler
def test_the_cpu_library_is_built_and_loads():
    assert _native.missing("cpu") is None


@needs_compiler
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_libraries_need_nothing_of_python_and_only_the_stable_abi(library):
    wanted = symbols(library, "--undefined-only")
    assert wanted
    for _, name in wanted:
        assert not re.match(r"_?Py[A-Z_]", name), f"a Python symbol: {name}"
        assert not re.search(r"\b(at|c10|torch)::", name), f"not of the stable ABI: {name}"


@needs_compiler
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_libraries_export_only_their_facts(library):
    functions = [name for kind, name in symbols(library, "--defined-only") if kind == "T"]
    assert all(name.startswith("evoworld_") for name in functions), functions


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="readelf reads Linux libraries")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_libraries_name_no_folder_of_the_build_machine(library):
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    paths = re.findall(r"(?:runpath|rpath): \[(.*)\]", dynamic)
    assert paths == ["$ORIGIN/../../torch/lib"]


@needs_compiler
def test_kernels_of_one_instruction_set_share_no_function_with_another():
    """Weak functions are merged by the linker: the copy that is kept may use instructions that the caller's lacks."""
    build = SOURCE / "build" / "native" / "CMakeFiles"
    objects = [
        path for isa in ("avx2", "avx512", "avx512_bf16") for path in build.glob(f"evoworld_kernels_{isa}.dir/**/*.o")
    ]
    if not objects:
        pytest.skip("not built in this folder, or not for x86-64")
    for path in objects:
        lines = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout.splitlines()
        assert [line for line in lines if re.search(r" [WVu] ", line)] == [], path.name


def test_build_facts():
    if not list(Path(evoworld.__file__).parent.glob("_C.*")):
        assert any("_C" in line or "every native library" in line for line in _native.left_out())
        pytest.skip("evoworld._C was left out of this installation")
    from evoworld._C import build_facts

    facts = build_facts()
    assert facts["version"] == evoworld.__version__
    assert "-ffp-contract=off" in facts["flags"] and "-ffast-math" not in facts["flags"]
    assert facts["instruction_sets"].startswith("baseline")
    assert facts["torch_target"] == "2.11"
    assert (facts["cuda_compiler"] == "none") == (facts["cuda_architectures"] == "")


def test_cuda_library_holds_the_architectures_that_it_says():
    library = Path(evoworld.__file__).parent / "lib" / "libevoworld_cuda.so"
    if not library.is_file():
        assert any("cuda" in line or "every native library" in line for line in _native.left_out())
        pytest.skip("libevoworld_cuda was left out of this installation")
    from evoworld._C import build_facts

    cuobjdump = find_tool("cuobjdump")
    if cuobjdump is None:
        pytest.skip("there is no cuobjdump, which comes with the CUDA toolkit and with triton")

    def listed(kind):
        lines = subprocess.run([cuobjdump, f"--list-{kind}", library], capture_output=True, text=True).stdout
        found = re.findall(r"\.sm_(\d+)(\d)([af]?)\.", lines)
        return {f"{major}.{minor}{suffix}" for major, minor, suffix in found}

    said = build_facts()["cuda_architectures"].split(";")
    fact = f"{' '.join(said)}\0".encode()  # what evoworld_cuda_architectures() returns
    assert library.read_bytes().count(fact) == 1
    assert listed("elf") == {entry.removesuffix("+PTX") for entry in said}
    assert listed("ptx") == {entry.removesuffix("+PTX") for entry in said if entry.endswith("+PTX")}


DEFAULT = "8.0 9.0a 10.0 12.0+PTX"


@pytest.mark.parametrize(
    ("architectures", "capability", "served"),
    [
        (DEFAULT, (7, 5), False),  # older than all
        (DEFAULT, (8, 0), True),
        (DEFAULT, (8, 6), True),  # machine code runs on later cards of the same major version
        (DEFAULT, (8, 9), True),
        (DEFAULT, (9, 0), True),
        (DEFAULT, (10, 0), True),
        (DEFAULT, (10, 3), True),
        (DEFAULT, (11, 0), False),  # neither code nor older PTX
        (DEFAULT, (12, 0), True),
        (DEFAULT, (12, 1), True),
        (DEFAULT, (13, 0), True),  # by PTX
        ("8.0 9.0a 10.0 12.0", (13, 0), False),
        ("8.6", (8, 0), False),
        ("9.0", (10, 0), False),
        ("10.0a", (10, 0), True),
        ("10.0a", (10, 3), False),  # a: that architecture alone
        ("10.0f", (10, 3), True),  # f: its family
        ("10.0f+PTX", (12, 0), False),
        ("9.0a+PTX", (10, 0), False),
        ("8.0+PTX", (9, 0), True),
        ("8.0+PTX", (7, 5), False),
    ],
)
def test_which_cards_an_architecture_serves(architectures, capability, served):
    message = _native.lacking(architectures.split(), capability)
    assert (message is None) == served
    if not served:
        number = "{}.{}".format(*capability)
        assert message.startswith(f"built for compute capability {architectures.replace(' ', ', ')}, this card has")
        assert f"has {number};" in message and message.endswith(f"EVOWORLD_CUDA_ARCHS={number}")


def test_a_card_that_the_cuda_library_was_not_built_for(monkeypatch):
    """It is loaded, and says what it lacks wherever one asks."""
    cards = [(7, 5), (9, 0)]
    monkeypatch.setattr(_native, "not_loaded", lambda name: None)
    monkeypatch.setattr(sys.modules["evoworld.ops.backend"], "_missing_kernel", lambda op, name: None)
    facts = {"evoworld_cuda_architectures": "9.0a", "evoworld_cuda_runtime": "13000"}
    monkeypatch.setattr(_native, "fact", lambda _, symbol: facts.get(symbol))
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 13000, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a card")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: cards[index])
    _native.not_built_for.cache_clear()
    try:
        assert _native.missing("cuda") is None  # the second card is served
        assert "has 7.5; install evoworld again with EVOWORLD_CUDA_ARCHS=7.5" in _native.not_built_for(0)
        with evoworld.backend("cuda"), pytest.raises(RuntimeError, match="this card has 7.5"):
            evoworld.ops.select("voxel_scatter", torch.device("cuda"), torch.float32)
        with evoworld.backend("cuda"):
            assert evoworld.ops.select("voxel_scatter", torch.device("cuda:1"), torch.float32) == "cuda"
        _native.not_built_for.cache_clear()
        facts["evoworld_cuda_runtime"] = "14010"
        assert _native.missing("cuda").startswith("built with CUDA 14.1, the driver is for 13.0; update it, or")
        facts["evoworld_cuda_runtime"] = "13000"
        _native.not_built_for.cache_clear()
        cards.pop()
        assert "this card has 7.5" in _native.missing("cuda")
        rows = dict(info.library_rows())
        assert rows["libevoworld_cuda"].startswith("loaded, cannot be used: built for compute capability 9.0a, this")
        rows = dict(info.backend_rows())
        assert rows["cuda"].startswith("unavailable for all ops: built for compute capability 9.0a")
    finally:
        _native.not_built_for.cache_clear()


def test_one_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", evoworld.__version__)
    assert info._version("evoworld") in (None, evoworld.__version__)


def test_missing_names_the_reason(monkeypatch, tmp_path):
    _native.not_loaded.cache_clear()
    try:
        monkeypatch.setenv(_native.VARIABLE, "none")
        assert _native.missing("cpu") == "switched off by EVOWORLD_LIBRARY_DIR=none"
        _native.not_loaded.cache_clear()
        monkeypatch.setenv(_native.VARIABLE, str(tmp_path))
        assert "libevoworld_cpu.so is not there" in _native.missing("cpu")
        _native.not_loaded.cache_clear()
        (tmp_path / "libevoworld_cpu.so").write_text("not a library")
        assert "libevoworld_cpu.so does not load" in _native.missing("cpu")
        if not torch.cuda.is_available():
            assert re.search("built without CUDA|sees no CUDA device", _native.missing("cuda"))
    finally:
        _native.not_loaded.cache_clear()
    with pytest.raises(ValueError, match="expected one of cpu, cuda, got 'gpu'"):
        _native.path("gpu")


def test_ops_work_without_native_libraries():
    code = "import evoworld, torch; print(evoworld.ops.select('volume_render', torch.device('cpu'), torch.float32))"
    environment = {**os.environ, _native.VARIABLE: "none"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "reference"


def test_a_clone_that_is_not_installed_has_the_triton_kernels():
    code = "import evoworld.kernels; print(evoworld.kernels.__file__)"
    # -S: without the site-packages, and so without this environment's installation.
    result = subprocess.run([sys.executable, "-S", "-c", code], cwd=SOURCE, capture_output=True, text=True, check=True)
    assert Path(result.stdout.strip()) == SOURCE / "kernels" / "__init__.py"


# ---- what the build says when something is not there ----


def test_setup_names_missing_tools(monkeypatch, tmp_path):
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    setup = runpy.run_path(str(SOURCE / "setup.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert setup["missing_tools"]() == (
        "every native library: no cmake and ninja; pip install cmake ninja, then install evoworld again"
    )
    for tool in ("cmake", "ninja"):
        (tmp_path / tool).touch(mode=0o755)
    assert setup["missing_tools"]() is None


def left_out_by_cmake(folder: Path, python: Path | str, **environment: str) -> list[str]:
    """Configures the build with a faked environment, and returns what it says it leaves out."""
    package = folder / "package"
    command = ["cmake", "-GNinja", "-S", SOURCE, "-B", folder / "build", f"-DPython_EXECUTABLE={python}"]
    command.append(f"-DEVOWORLD_PACKAGE_DIR={package}")
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert result.returncode == 0, result.stderr
    lines = (package / "lib" / "left_out.txt").read_text().splitlines()
    assert all(f"evoworld: left out: {line}" in result.stdout for line in lines)
    return lines


def test_without_a_compiler(tmp_path):
    lines = left_out_by_cmake(tmp_path, sys.executable, CXX="no-such-compiler")
    assert lines == [
        "every native library: no C++20 compiler; install g++ 11 or clang 14 or newer, then install evoworld again"
    ]


@needs_compiler
def test_without_torch_and_nvcc(tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    lines = left_out_by_cmake(tmp_path, python, CUDACXX="no-such-nvcc", PYTHONPATH="")
    starts = [line.partition(":")[0] for line in lines]
    assert starts == ["libevoworld_cpu", "libevoworld_cuda", "evoworld._C"]
    assert "pip install 'torch>=2.11'" in lines[0] and "found: none" in lines[0]
    assert "nvcc was not found" in lines[1] and "CUDA toolkit" in lines[1]
    assert "pip install pybind11" in lines[2]


def test_find_torch_reads_the_environment_without_importing(tmp_path):
    find_torch = runpy.run_path(str(SOURCE / "cmake" / "find_torch.py"))["find_torch"]
    assert find_torch([tmp_path]) is None
    stable = tmp_path / "torch" / "include" / "torch" / "csrc" / "stable"
    stable.mkdir(parents=True)
    (stable / "library.h").touch()
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.11.0+cu130'\n")
    assert find_torch([tmp_path / "elsewhere", tmp_path]) == (tmp_path / "torch", "2.11.0")


def test_find_torch_finds_the_torch_that_build_isolation_hides():
    """pip takes the environment's packages off sys.path for the build; sysconfig still knows where they are."""
    hide = "import sys; sys.path = [folder for folder in sys.path if 'site-packages' not in folder]"
    run = f"import runpy; runpy.run_path({str(SOURCE / 'cmake' / 'find_torch.py')!r}, run_name='__main__')"
    command = [sys.executable, "-c", f"{hide}; {run}"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    folder, version = result.stdout.strip().split(";")
    assert Path(folder) == Path(torch.__file__).parent
    assert torch.__version__.startswith(version)


# ---- evoworld info and the command ----


def test_extras_are_those_of_the_project():
    text = (SOURCE / "pyproject.toml").read_text(encoding="utf-8")
    for extra, modules in info.EXTRAS.items():
        line = re.search(rf"^{extra} = (\[.*\])$", text, re.MULTILINE)[1]
        assert [re.match(r"[\w-]+", requirement)[0] for requirement in json.loads(line)] == list(modules)


def test_info_says_what_serves_each_op_and_why():
    report = info.describe()
    sections = re.findall(r"^\w.*$", report, re.MULTILINE)
    assert sections[1:] == ["versions", "native libraries", "build", "ops", "backends", "extras"]
    assert torch.__version__ in report and evoworld.__version__ in report
    for op in OPS:
        assert re.search(rf"^  {op} +cpu tensors: (cpu|reference)", report, re.MULTILINE)
    if not torch.cuda.is_available():
        assert re.search(
            r"^  libevoworld_cuda +not loaded: torch .* (built without CUDA|sees no CUDA device)", report, re.M
        )


def test_info_names_the_ops_that_a_backend_leaves_to_plain_pytorch(monkeypatch):
    monkeypatch.setattr(sys.modules["evoworld.ops.backend"], "_missing", lambda op, name: None)
    rows = dict(info.backend_rows())
    assert rows["triton"] == "serves voxel_scatter, volume_render, sphere_attention; sparse_grid by plain PyTorch"
    assert rows["cuda"] == "serves all ops"


def test_info_says_how_to_get_a_missing_extra(monkeypatch):
    find_spec = info.importlib.util.find_spec
    monkeypatch.setattr(info.importlib.util, "find_spec", lambda name: None if name == "pycolmap" else find_spec(name))
    assert ("pycolmap", "missing; pip install 'evoworld[colmap]'") in info.extra_rows()
