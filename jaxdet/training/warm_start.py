"""Start a run from a trained network, whose classes and input size may differ.

    start = WarmStart(partial(read_run, "runs/detect"), classes, shapes, normalization)
    variables = start(variables)  # initial variables -> variables to train from

A variable is copied if the trained network has one of the same name and shape.  Class outputs are
matched by the names of the classes: outputs of classes that both networks have are copied; outputs
of new classes keep their initial values.  The backbone must fit as a whole.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxdet import tables
from jaxdet.config import RUN
from jaxdet.errors import InputError
from jaxdet.models import registry
from jaxdet.training import checkpoint, run_dir, weight_file
from jaxdet.types import Array, Tree

BACKBONE = "features"  # name of the backbone in a network
COPIED, BY_CLASS, INITIAL, DROPPED = OUTCOMES = ("copied", "by class", "initial", "dropped")
MAX_NAMES = 5  # largest number of classes that are listed by name


class Trained(NamedTuple):
    """A trained network: another run, or a published detector."""

    weights: str  # as given by --weights
    variables: Tree
    classes: tuple[str, ...]
    normalization: str  # of its images, as in the metadata of a run


def read_run(folder: str) -> Trained:
    """The network of the run in a folder, or in a file that `jaxdet export` has written.

    Raises InputError if the folder has no checkpoint, or if the file is damaged.
    """
    if Path(folder).is_file():
        saved = weight_file.read(folder)
        variables, metadata = saved.variables, saved.metadata
    else:
        _, variables = checkpoint.read_variables(folder)
        metadata = run_dir.read_metadata(folder)
    normalization = metadata.get("normalization", "")
    return Trained(f"{RUN}{folder}", variables, tuple(metadata["classes"]), normalization)


def read_detector(model: str, weights: str) -> Trained:
    """A published detector; InputError if the weights do not fit the model."""
    normalization = registry.normalization(model).formula
    return Trained(weights, *registry.load_detector(model, weights), normalization)


class Layout(NamedTuple):
    """Where the classes are in a variable: consecutive entries in each part of one of its axes.

    axis: the axis.
    groups: number of equal parts of the axis, each with an entry per class.
    first: place of the first class in a part; None: the classes are the last entries of a part.
    """

    axis: int
    groups: int
    first: int | None = None


@dataclass(frozen=True)
class WarmStart:
    """The variables of a trained network, adapted to a network with the given classes.

    read: function that reads the trained network, such as `partial(read_run, folder)`.
    shapes: function from a number of classes to the shapes of the variables of that network.
    normalization: normalization of the network's images, as in the metadata of a run.
    first_class: `Layout.first` of the network's outputs.

    Raises InputError if the trained network cannot be read, if its backbone is another one, or if
    none of its variables fits.
    """

    read: Callable[[], Trained]
    classes: tuple[str, ...]
    shapes: Callable[[int], Tree]
    normalization: str = ""
    first_class: int | None = None

    def __call__(self, variables: Tree) -> Tree:
        """The variables to train from; `variables` are initial values, or only their shapes."""
        return self._transfer(variables, self.read())[0]

    def summary(self, variables: Tree) -> str:
        """A table of the numbers of copied variables, and what happens to each class.

        variables: as in `__call__`.
        """
        trained = self.read()
        _, outcomes = self._transfer(variables, trained)
        rows: dict[str, dict[str, Any]] = {}
        for path, outcome in outcomes.items():
            module = path.split("/")[1]
            row = rows.setdefault(module, {"module": module, **dict.fromkeys(OUTCOMES, 0)})
            row[outcome] += 1
        known = trained.classes
        classes = {
            "kept": [name for name in self.classes if name in known],
            "new": [name for name in self.classes if name not in known],
            DROPPED: [name for name in known if name not in self.classes],
        }
        lines = [
            f"variables of {trained.weights}, by module:",
            tables.aligned(list(rows.values()), ["module", *OUTCOMES]),
            "classes: " + ", ".join(_listed(key, names) for key, names in classes.items()),
        ]
        if self.normalization and trained.normalization != self.normalization:
            lines.append(
                f"warning: {trained.weights} was trained on images normalized as "
                f"{trained.normalization}; this run normalizes images as {self.normalization}"
            )
        return "\n".join(lines)

    @cached_property
    def _larger(self) -> Tree:
        """Shapes of the variables of the network with one class more; they take long to trace."""
        return self.shapes(len(self.classes) + 1)

    def _transfer(self, variables: Tree, trained: Trained) -> tuple[Tree, dict[str, str]]:
        layouts = find_layouts(variables, self._larger, self.first_class)
        source, known = trained.variables, trained.classes
        values, outcomes = transfer(variables, source, layouts, self.classes, known)
        if BACKBONE in source["params"] and (misfit := _find_misfit(outcomes)):
            raise InputError(
                f"--weights {trained.weights}: the run has another backbone ({misfit} does not "
                f"fit); choose the --model of that run"
            )
        if not {COPIED, BY_CLASS} & {*outcomes.values()}:
            raise InputError(
                f"--weights {trained.weights}: no variable of that run fits the network; choose "
                f"the --model and options of that run"
            )
        return values, outcomes


def find_layouts(shapes: Tree, more: Tree, first: int | None = None) -> dict[str, Layout]:
    """The layouts of all variables that depend on the number of classes, {path: layout}.

    shapes, more: the variables of a network for some number of classes, and for one class more.
      Variables of the task, which only `shapes` has, have no layout.
    first: see `Layout`.
    """
    layouts, larger = {}, _by_path(more)
    for path, leaf in _by_path(shapes).items():
        if path not in larger:
            continue
        grown = np.subtract(larger[path].shape, leaf.shape)
        if grown.any():
            (axis,) = np.flatnonzero(grown)
            layouts[path] = Layout(int(axis), int(grown[axis]), first)
    return layouts


def transfer(
    variables: Tree,
    source: Tree,
    layouts: Mapping[str, Layout],
    classes: Sequence[str],
    source_classes: Sequence[str],
) -> tuple[Tree, dict[str, str]]:
    """(variables with values of `source` where they fit, {path: one of `OUTCOMES`}).

    The leaves of `variables` may be arrays or only their shapes.  Paths that only `source` has are
    `DROPPED`.
    """
    given, outcomes = _by_path(source), {}

    def value(key_path: tuple, leaf: Any) -> Any:
        path = _path(key_path)
        old, layout = given.pop(path, None), layouts.get(path)
        if old is None:
            outcomes[path] = INITIAL
        elif layout is not None and _fits(leaf.shape, old.shape, layout, classes, source_classes):
            outcomes[path] = BY_CLASS
            leaf = _match_classes(leaf, old, layout, classes, source_classes)
        elif layout is None and leaf.shape == old.shape:
            outcomes[path] = COPIED
            leaf = jnp.asarray(old, leaf.dtype)
        else:
            outcomes[path] = INITIAL
        return leaf

    values = jax.tree.map_with_path(value, variables)
    return values, outcomes | dict.fromkeys(given, DROPPED)


def _find_misfit(outcomes: Mapping[str, str]) -> str:
    """The path of a variable that does not fit the other backbone; "" if all variables fit."""
    # A backbone may have fewer stages than the other, but not fewer blocks in a stage.
    stages: dict[str, dict[str, str]] = {}  # outcome -> {stage: a path in it}
    for path, outcome in outcomes.items():
        _, module, *layers = path.split("/")
        if module == BACKBONE:
            stages.setdefault(outcome, {}).setdefault(layers[0].partition("_")[0], path)
    copied, dropped = stages.get(COPIED, {}), stages.get(DROPPED, {})
    partly = [path for stage, path in dropped.items() if stage in copied]
    return next(iter([*stages.get(INITIAL, {}).values(), *partly]), "")


def _fits(
    shape: tuple[int, ...],
    old: tuple[int, ...],
    layout: Layout,
    classes: Sequence[str],
    source_classes: Sequence[str],
) -> bool:
    """Whether two shapes differ by their numbers of classes alone."""
    expected = list(shape)
    expected[layout.axis] += layout.groups * (len(source_classes) - len(classes))
    return tuple(expected) == old


def _match_classes(
    leaf: Any, old: Array, layout: Layout, classes: Sequence[str], source_classes: Sequence[str]
) -> Any:
    """Copy from `old` to `leaf` the entries of classes with equal names, and of other outputs."""
    if not isinstance(leaf, jax.Array | np.ndarray):
        return leaf  # a shape without values
    new, old = (_grouped(np.asarray(array), layout) for array in (leaf, old))
    new = new.copy()
    others = new.shape[1] - len(classes)
    first = others if layout.first is None else layout.first
    new[:, :first] = old[:, :first]
    new[:, first + len(classes) :] = old[:, first + len(source_classes) :]
    for place, name in enumerate(classes, first):
        if name in source_classes:
            new[:, place] = old[:, first + source_classes.index(name)]
    moved = np.moveaxis(leaf, layout.axis, 0).shape
    return jnp.asarray(np.moveaxis(new.reshape(moved), 0, layout.axis), leaf.dtype)


def _grouped(array: np.ndarray, layout: Layout) -> np.ndarray:
    """Reshape an array to [groups, entries of a group, other axes ...]."""
    moved = np.moveaxis(array, layout.axis, 0)
    return moved.reshape(layout.groups, -1, *moved.shape[1:])


def _by_path(tree: Tree) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")


def _path(key_path: tuple) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def _listed(key: str, names: Sequence[str]) -> str:
    more = ", ..." if len(names) > MAX_NAMES else ""
    return f"{len(names)} {key}" + (f" ({', '.join(names[:MAX_NAMES])}{more})" if names else "")
