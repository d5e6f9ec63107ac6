import ast
import json
import re
import subprocess
import sys
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import jaxdet

ROOT = Path(jaxdet.__file__).parent

# Rooms from the bottom up.  A room may use those of lower lines, and those on its left.
LEVELS = """
errors
types
ops losses embedding_losses metrics verification optim weights
models data pretrained
timing tables parallel runs checkpoint progress plots describe roofline tasks
evaluate classic train fit budget sweep
configs
flags pages options options_verify commands cli
"""
ROOMS = LEVELS.split()

FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
MODULES = {path: ".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in FILES}
MODULES = {path: name.removesuffix(".__init__") for path, name in MODULES.items()}
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def imports(path):
    """Modules that a file imports anywhere; `from a import b` is `a.b` where that is a module."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            whole = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES.values() else node.module for name in whole)


def room(module):
    """The first name below jaxdet; the package itself is the lowest of rooms."""
    return [*module.split("."), ""][1]


def public(tree):
    """Public functions and classes of a module and its classes, with their qualified names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (*FUNCTION, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                yield from ((f"{node.name}.{name}", method) for name, method in public(node))


def calls(tree, name):
    """Lines that call a plain name."""
    found = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name))
    return [node.lineno for node in found if node.func.id == name]


@each_file
def test_every_room_is_on_the_map(path):
    assert room(MODULES[path]) in ["", *ROOMS]


@each_file
def test_imports_go_down_or_to_the_left(path):
    here = ["", *ROOMS].index(room(MODULES[path]))
    used = {room(name) for name in imports(path) if name.split(".")[0] == "jaxdet"}
    above = [name for name in used if name in ROOMS and ["", *ROOMS].index(name) > here]
    assert not above


def test_no_module_imports_itself_by_any_way():
    graph = {MODULES[path]: set(imports(path)) & set(MODULES.values()) for path in FILES}
    TopologicalSorter({module: used - {module} for module, used in graph.items()}).prepare()


@each_file
def test_tensorflow_and_torch_are_never_imported(path):
    assert not {"tensorflow", "torch"} & {name.split(".")[0] for name in imports(path)}


@each_file
def test_what_is_public_has_a_docstring(path):
    assert ast.get_docstring(TREES[path]), "the module"
    assert not [name for name, node in public(TREES[path]) if not ast.get_docstring(node)]


@each_file
def test_a_key_comes_first(path):
    for name, node in public(TREES[path]):
        if isinstance(node, FUNCTION):
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg != "self"]
            if names == ["variables", "batch", "key", "at"]:  # Task.loss, see jaxdet.types
                continue
            every = [*names, *(a.arg for a in node.args.kwonlyargs)]
            assert "key" not in every[1:] and "keys" not in every[1:], name


@each_file
def test_only_the_command_line_prints(path):
    said = path.name == "cli.py" or room(MODULES[path]) == "commands"
    assert said or not calls(TREES[path], "print")


@each_file
def test_nothing_is_left_to_do_or_to_be_overlooked(path):
    marks = r"\b(TODO|FIXME|XXX|HACK)\b|# *noqa|# *type: *ignore|# *pragma|# *fmt: *(off|skip)"
    assert not re.findall(marks, path.read_text())


@each_file
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 300


@each_file
def test_functions_are_short(path):
    found = (node for node in ast.walk(TREES[path]) if isinstance(node, FUNCTION))
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in found}
    assert not {name: length for name, length in lengths.items() if length > 45}


def test_no_two_functions_have_one_body():
    bodies = defaultdict(list)
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, FUNCTION) and len(node.body) > 3:
                code = ast.dump(ast.Module(node.body[1:], []))  # without the docstring
                bodies[code].append(f"{MODULES[path]}.{node.name}")
    assert not [names for names in bodies.values() if len(names) > 1]


ALL = """
import json, os, sys

class Refuse:
    def find_spec(self, name, *_):
        assert name.split(".")[0] != "tensorflow", "tensorflow is imported"

sys.meta_path.insert(0, Refuse())
import jax
environment = dict(os.environ)
settings = dict(jax.config.values)
from importlib import import_module
for name in sys.argv[1:]:
    import_module(name)
from jax._src import xla_bridge
print(json.dumps({
    "environment": dict(os.environ) == environment,
    "settings": dict(jax.config.values) == settings,
    "backends": list(xla_bridge._backends),
    "tensorflow": "tensorflow" in sys.modules,
}))
"""


def test_importing_everything_starts_nothing_and_sets_nothing():
    command = [sys.executable, "-c", ALL, "jaxdet", *MODULES.values()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = {"environment": True, "settings": True, "backends": [], "tensorflow": False}
    assert json.loads(done.stdout) == expected
    assert done.stderr == ""
