"""The house rules: who imports whom, the size of the core, no unpickling, the printed documentation runs."""

import ast
import doctest
import re
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
FILES = sorted((REPO / "vit").rglob("*.py"))

# room → the rooms that it may import from, beside itself (docs/decisions/0001)
DOORS = {
    "errors": set(),
    "limits": {"errors"},
    "config": {"errors", "limits"},
    "flags": {"config", "errors", "limits"},
    "models": {"config", "errors"},
    "tasks": {"config", "errors", "models"},
    "data": {"config", "errors"},
    "training": {"config", "errors", "limits", "models", "tasks", "data", ""},
    "report": {"config", "errors", "models", "tasks", "data", "training"},
    "cli": {"config", "data", "errors", "flags", "models", "report", "training"},
    "__main__": {"cli"},
    "": {"config", "models"},  # vit/__init__.py
}


def room(path):
    parts = path.relative_to(REPO / "vit").with_suffix("").parts
    return "" if parts[0] == "__init__" else parts[0]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom) and node.module == "vit":
            names = [f"vit.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.split(".") for name in names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(REPO)))
def test_doors(path):
    for name in imports(path):
        if name[0] == "vit":
            other = name[1] if len(name) > 1 else ""
            assert other == room(path) or other in DOORS[room(path)], f"{path} imports {'.'.join(name)}"
        if name[0] == "orbax":
            assert path.name == "checkpoint.py"
        if name[0] == "matplotlib":
            assert room(path) == "report"


def test_the_core_stays_small():
    core = [
        "vit/config.py", *[str(p.relative_to(REPO)) for p in FILES if room(p) == "models"], "vit/tasks/classification.py",
        "vit/training/state.py", "vit/training/optim.py", "vit/training/loop.py", "train.py",
    ]  # fmt: skip
    assert sum(len((REPO / name).read_text().splitlines()) for name in core) <= 1500


@pytest.mark.parametrize("path", [*FILES, REPO / "train.py", REPO / "eval.py"], ids=lambda p: str(p.relative_to(REPO)))
def test_nothing_is_unpickled_or_evaluated(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", "")
            assert name not in {"eval", "exec"}
            assert not any(k.arg == "allow_pickle" and getattr(k.value, "value", True) for k in node.keywords)
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None
    assert not any(name[0] in {"pickle", "dill", "cloudpickle", "joblib", "shelve"} for name in imports(path))


def test_files_and_functions_are_short():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 400, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_the_walk_through_the_network_is_true():
    results = doctest.testfile(str(REPO / "docs" / "one_image.md"), module_relative=False)
    assert results.attempted > 10
    assert results.failed == 0


def test_the_readme_names_every_file_and_no_other():
    text = (REPO / "README.md").read_text()
    tree = re.search(r"```\n(train\.py .*?)```", text, re.S).group(1)
    named, folder = set(), []
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folder = [*folder[:depth], name.rstrip("/")]
        if not name.endswith("/"):
            named.add("/".join(folder))
    have = {str(p.relative_to(REPO)) for p in FILES if p.name != "__init__.py" or p.stat().st_size > 60}
    have |= {"train.py", "eval.py", *(str(p.relative_to(REPO)) for p in (REPO / "configs").glob("*.py"))}
    assert {name for name in named if name.endswith(".py")} == have
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (REPO / link).exists(), link
