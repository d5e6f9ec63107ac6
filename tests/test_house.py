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
from jaxdet import packages

ROOT = Path(jaxdet.__file__).parent

# Packages and modules from the bottom up: an import goes to a lower line or stays on its own.
LEVELS = """
errors config migrations packages types rng files compilation_cache tables pickles kernels
ops flops
losses metrics models data
plots profiling
training
tasks
configs baselines
runs export reports api
cli __main__
"""
LEVEL_OF = {name: i for i, line in enumerate(LEVELS.split("\n")) for name in line.split()}

FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
MODULES = {path: ".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in FILES}
MODULES = {path: name.removesuffix(".__init__") for path, name in MODULES.items()}
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
SMALL = 20  # nodes of a body of one or two statements that may stand twice


def runtime_nodes(tree):
    """All nodes of a module but those under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from runtime_nodes(node)


def imports(path):
    """Modules that a file imports anywhere but for type checking."""
    for node in runtime_nodes(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            whole = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES.values() else node.module for name in whole)


def package(module):
    """The first name below jaxdet; "" for jaxdet itself, which may import anything lazily."""
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
def test_every_module_has_a_level(path):
    assert package(MODULES[path]) in ["", *LEVEL_OF]


@each_file
def test_imports_go_down_or_stay_on_their_level(path):
    here = package(MODULES[path])
    used = {package(name) for name in imports(path) if name.split(".")[0] == "jaxdet"} - {""}
    assert not here or not [name for name in used if LEVEL_OF[name] > LEVEL_OF[here]]


def test_the_map_of_the_readme_has_these_levels():
    block = (ROOT.parent / "README.md").read_text().split("## The map")[1].split("```")[1]
    listed = [line.split("  ")[0].split() for line in block.strip().splitlines()]
    expected = [
        [name for name in line.split() if name != "__main__"]
        for line in LEVELS.strip().splitlines()
    ]
    assert [sorted(names) for names in listed] == [sorted(names) for names in expected]


def test_imports_have_no_cycles():
    graph = {MODULES[path]: set(imports(path)) & set(MODULES.values()) for path in FILES}
    TopologicalSorter({module: used - {module} for module, used in graph.items()}).prepare()


@each_file
def test_tensorflow_and_torch_are_never_imported(path):
    assert not {"tensorflow", "torch"} & {name.split(".")[0] for name in imports(path)}


@each_file
def test_public_functions_and_classes_have_docstrings(path):
    assert ast.get_docstring(TREES[path]), "the module"
    assert not [name for name, node in public(TREES[path]) if not ast.get_docstring(node)]


@each_file
def test_public_functions_are_typed(path):
    missing = []
    for name, node in public(TREES[path]):
        if isinstance(node, FUNCTION):
            args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            args += [a for a in (node.args.vararg, node.args.kwarg) if a]
            untyped = [a.arg for a in args if a.annotation is None and a.arg not in ("self", "cls")]
            if untyped or node.returns is None:
                missing.append((name, untyped, "no return type" if node.returns is None else ""))
    assert not missing


@each_file
def test_a_key_comes_first(path):
    for name, node in public(TREES[path]):
        if isinstance(node, FUNCTION):
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg != "self"]
            if names == ["variables", "batch", "key", "context"]:  # Task.loss, see jaxdet.types
                continue
            every = [*names, *(a.arg for a in node.args.kwonlyargs)]
            assert "key" not in every[1:] and "keys" not in every[1:], name


@each_file
def test_only_the_command_line_prints(path):
    assert package(MODULES[path]) in ("cli", "__main__") or not calls(TREES[path], "print")


@each_file
def test_no_marks_of_unfinished_work(path):
    marks = r"\b(TODO|FIXME|XXX|HACK)\b|# *noqa|# *type: *ignore|# *pragma|# *fmt: *(off|skip)"
    assert not re.findall(marks, path.read_text())


def test_no_two_functions_have_one_body():
    bodies = defaultdict(list)
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, FUNCTION):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if len(body) < 3 and sum(1 for part in body for _ in ast.walk(part)) < SMALL:
                    continue
                code = ast.dump(ast.Module(body, []))
                bodies[code].append(f"{MODULES[path]}.{node.name}")
    assert not [names for names in bodies.values() if len(names) > 1]


ALL = """
import json, os, sys

class Refuse:
    def find_spec(self, name, *_):
        assert name.split(".")[0] not in {refused}, f"{{name}} is imported"

sys.meta_path.insert(0, Refuse())
import jax
environment = dict(os.environ)
settings = dict(jax.config.values)
from importlib import import_module
for name in sys.argv[1:]:
    import_module(name)
from jax._src import xla_bridge
print(json.dumps({{
    "environment": dict(os.environ) == environment,
    "settings": dict(jax.config.values) == settings,
    "backends": list(xla_bridge._backends),
}}))
"""
# JAX itself imports flatbuffers if it is there.
LATER = {"tensorflow", "torch", "tqdm", "grain", "cv2", *packages.INSTALL} - {"tyro", "flatbuffers"}


def test_importing_everything_has_no_side_effects():
    code = ALL.format(refused=sorted(LATER))
    command = [sys.executable, "-c", code, "jaxdet", *MODULES.values()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = {"environment": True, "settings": True, "backends": []}
    assert json.loads(done.stdout) == expected
    assert done.stderr == ""
