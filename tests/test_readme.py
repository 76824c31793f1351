"""The examples of the README run as they stand there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_there_is_an_example_of_the_memory_and_of_what_drops_into_models():
    for name in ("Memory", "volume_render", "voxel_scatter", "sphere_attention", "patch_attention"):
        assert any(re.search(rf"import .*\b{name}\b", example) for example in EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs(example, monkeypatch):
    if "diffusers" in example:
        pytest.importorskip("diffusers")
    monkeypatch.chdir(ROOT)
    exec(compile(example, "README.md", "exec"), {})


def test_files_that_it_shows_are_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert links
    for link in links:
        assert (ROOT / link).is_file(), link
