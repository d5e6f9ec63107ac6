"""Evaluation: loss, predictions and scores of a task over a whole split.

Random inputs of a task are keyed by the id of the sample, so that every evaluation, during training
or of a checkpoint, has the same inputs.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet import flops, rng
from jaxdet.data import sampler
from jaxdet.metrics import bootstrap as metrics_bootstrap
from jaxdet.models import folding
from jaxdet.training import hosts, memory, parallel
from jaxdet.training.experiment import Experiment
from jaxdet.training.progress import Counting
from jaxdet.types import Array, Batch, Device, StepContext, Task, Tree


class Evaluator:
    """Computes the scores of one split: `evaluator(variables, epoch) -> {name: value}`.

    `loss` and its terms are means over the split; the other values come from `task.report`.  Images
    of a stream that cannot be read any more do not count.  The program is compiled once.

    data: the arrays of the split on the devices, if they have been copied there already.
    devices: by default the devices of the experiment.  Batches are padded to a multiple of their
      number.
    """

    def __init__(
        self,
        experiment: Experiment,
        split: str,
        data: Batch | None = None,
        devices: Sequence[Device] | None = None,
    ):
        self.config, self.devices = experiment.config, devices or experiment.devices
        self.source, self.task = experiment.splits[split], experiment.task
        self.data = parallel.replicate(self.source.arrays, self.devices) if data is None else data
        self.hparams = parallel.replicate(experiment.hparams, self.devices)
        batch = -(-self.config.eval_batch // len(self.devices)) * len(self.devices)
        self.rows = sampler.eval_batches(len(self.source), batch)
        self.count = len(self.source)
        self.norms: folding.Norms | None = None  # found by the first evaluation
        step = partial(eval_step, task=self.task)
        self.step = parallel.compile_step(step, self.devices, replicated=4, out_axes=(None, 0))

    def __call__(
        self,
        variables: Tree,
        epoch: Any,
        pause: Callable[[], None] = lambda: None,
        hparams: dict[str, Array] | None = None,
    ) -> dict[str, Any]:
        """Scores of `variables` on the split.

        epoch: number of completed epochs, on which the loss may depend.
        pause: called before each batch; it may raise an exception to end the evaluation.
        hparams: traced hyper-parameters; by default the initial values of the experiment.
        """
        losses, rows = self.measure(variables, epoch, pause, hparams)
        return hosts.from_main(lambda: {**losses, **self.task.report(rows)})

    def measure(
        self,
        variables: Tree,
        epoch: Any,
        pause: Callable[[], None] = lambda: None,
        hparams: dict[str, Array] | None = None,
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """(means of the loss terms, rows of `task.measure` for the whole split), on the host.

        Arguments as in `__call__`.
        """
        variables, hparams = self._folded(variables), hparams or self.hparams
        results, masks, epoch = [], [], np.int32(epoch)  # one program for all epochs
        with memory.explained(self.config, "eval_batch"):
            for index, real in self._batches():
                pause()
                rows = {"index": index, "real": real}
                results.append(self.step(variables, self.data, hparams, epoch, rows))
                masks.append(real)
            results = jax.device_get(results)
        terms, measures = zip(*results, strict=True)
        measures = [parallel.unshard(m, len(self.devices)) for m in measures]
        rows = jax.tree.map(lambda *parts: np.concatenate(parts), *measures)
        rows, real = hosts.gather_rows((rows, np.concatenate(masks)), len(masks))
        counts = real.reshape(len(masks), -1).sum(1)
        weights = counts / max(counts.sum(), 1)
        losses = {
            name: float(sum(w * t[name] for w, t in zip(weights, terms, strict=True)))
            for name in terms[0]
        }
        return losses, jax.tree.map(lambda column: column[real > 0], rows)

    def measure_counted(
        self, variables: Tree, epoch: Any, progress: Counting
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """`measure`, with a display of the number of images."""
        with progress(self.count) as advance:
            return self.measure(variables, epoch, partial(advance, self.config.eval_batch))

    def compile(self, variables: Tree) -> None:
        """Compile the evaluation step, so that a later pass can be timed without compilation."""
        index, real = next(self._batches())
        variables = self._folded(variables)
        rows = {"index": index, "real": real}
        with memory.explained(self.config, "eval_batch"):
            jax.block_until_ready(self.step(variables, self.data, self.hparams, np.int32(0), rows))

    def operations(self, variables: Tree) -> flops.OpCounts:
        """Number of operations of the prediction for one image, see `flops.count`."""
        return flops.count(self.task.predict, variables, self._image()).sum()

    def _image(self) -> jax.ShapeDtypeStruct:
        """A batch of one image."""
        rows = {"index": np.zeros(1, np.int32), "real": np.ones(1, np.float32)}
        context = StepContext(False, jnp.int32(0), jnp.int32(0), self.hparams)
        data = self.source.first(1).arrays
        batch = jax.eval_shape(lambda data: prepare_batch(self.task, data, rows, context), data)
        return batch["image"]

    def _folded(self, variables: Tree) -> Tree:
        """Variables on the devices, with batch norm folded into convolutions."""
        if self.norms is None:
            self.norms = folding.find_norms(self.task.predict, variables, self._image())
        folded = folding.fold_batch_norm(variables, self.norms)
        return parallel.replicate(folded, self.devices)

    def _batches(self) -> Iterator[tuple[Any, np.ndarray]]:
        """(rows of this process, mask of real rows [B]) of every batch."""
        return self.source.masked_batches(*map(hosts.own_rows, self.rows))


def details(task: Task, rows: Batch, score_threshold: float | None = None) -> dict[str, Any]:
    """The scores of a task: by its method `details` or, if it has none, by `report`.

    rows: from `Evaluator.measure`.
    """
    own: Any = getattr(task, "details", None)
    return own(rows, score_threshold) if own else task.report(rows)


def bootstrap(task: Task, rows: Batch, resamples: int) -> dict[str, np.ndarray]:
    """Scores of a task on resampled images, {score: [resamples]}; every call draws the same images.

    rows: from `Evaluator.measure`.
    """
    own: Any = getattr(task, "bootstrap", None)
    if own:
        return own(rows, resamples)
    return metrics_bootstrap.resample(task.report, rows, resamples=resamples)


def eval_step(
    variables: Tree,
    data: Batch,
    hparams: dict[str, Array],
    epoch: Array,
    rows: Batch,
    *,
    task: Task,
    axis: str | None,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """(loss terms, measured rows [B]) of one batch; terms are means over real rows of all devices.

    The loss is the training loss at `epoch`.
    """
    context = StepContext(False, jnp.int32(0), epoch, hparams, axis)
    batch = prepare_batch(task, data, rows, context)
    _, (_, terms) = task.loss(variables, batch, jax.random.key(0), context)
    measures = task.measure(predict(task, variables, batch), batch)
    return parallel.psum(terms, axis), measures


def predict(task: Task, variables: Tree, batch: Batch) -> dict[str, Array]:
    """Predictions for a prepared batch: by the method `predict_batch` or, without it, `predict`.

    `predict_batch(variables, batch)` is for predictions that depend on more than the pixels.
    """
    own: Any = getattr(task, "predict_batch", None)
    return own(variables, batch) if own else task.predict(variables, batch["image"])


def prepare_batch(task: Task, data: Batch, rows: Batch, context: StepContext) -> Batch:
    """The evaluation batch of `rows {index [B], real [B]}`; random keys follow from sample ids."""
    batch = {**sampler.gather(data, rows["index"]), "real": rows["real"]}
    root = rng.fold_in(jax.random.key(0), rng.EVALUATE)
    return task.augment(rng.row_keys(root, batch["id"]), batch, context)


def samples(
    experiment: Experiment, split: str, count: int, *, train: bool = False, seed: int = 0
) -> Batch:
    """The first `count` rows of a split as inputs of the network, on the host.

    train: whether the rows are augmented as in training, with random numbers from `seed`.
    """
    batch = experiment.splits[split].first(count).arrays
    root = rng.fold_in(jax.random.key(seed), rng.AUGMENT if train else rng.EVALUATE)
    context = StepContext(train, jnp.int32(0), jnp.int32(0), experiment.hparams)

    @jax.jit
    def prepare(batch):
        batch = batch | {"real": jnp.ones(len(batch["id"]))}
        return experiment.task.augment(rng.row_keys(root, batch["id"]), batch, context)

    return jax.device_get(prepare(batch))


def cost_summary(scores: dict[str, Any], counts: flops.OpCounts, seconds: float) -> dict[str, Any]:
    """Cost of an evaluation (operations, seconds, operations per second), and its error rate.

    The error rate is left out if `scores` has no accuracy.
    """
    error = {"error_rate": 1 - scores["accuracy"]} if "accuracy" in scores else {}
    return {
        **error,
        **operation_kinds(counts),
        "seconds": seconds,
        "operations_per_second": counts.total() / seconds,
    }


def operation_kinds(counts: flops.OpCounts) -> dict[str, int]:
    """Numbers of additions, multiplications and maxima, and of all operations of any kind."""
    return {
        "additions": counts.additions,
        "multiplications": counts.multiplications,
        "maxima": counts.maxima,
        "operations": counts.total(),
    }
