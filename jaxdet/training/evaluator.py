"""Evaluation: the task's own loss, predictions and scores over a whole split.

Inputs that a task draws on the fly are keyed by the sample's id, so that every evaluation, in
training or from a checkpoint, sees the same ones.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet import flops, rng
from jaxdet.data import sampler
from jaxdet.training import parallel
from jaxdet.types import StepContext


def variables(state):
    """What a trained network is judged by: the moving averages where they are kept."""
    kept = state.ema or {"params": state.params, "stats": state.stats}
    return join(kept["params"], kept["stats"])


def epoch(state):
    """Whole passes that a state has been trained for, as its training counts them."""
    return state.step // state.hparams["epoch_steps"]


def join(params, stats):
    """Flax variables of parameters and batch statistics; the latter may be empty."""
    return {"params": params, **({"batch_stats": stats} if stats else {})}


def prepared(task, data, rows, at):
    """The evaluation batch of `rows {index [B], real [B]}`, drawn by the samples' ids."""
    batch = {**sampler.gather(data, rows["index"]), "real": rows["real"]}
    root = rng.fold_in(jax.random.key(0), rng.EVALUATE)
    return task.augment(rng.row_keys(root, batch["id"]), batch, at)


def samples(system, split, count, *, train=False, seed=0):
    """The first `count` rows of a split as the network sees them, on the host.

    `train` draws them as training does, random by `seed`; otherwise as every evaluation does.
    """
    batch = system.splits[split].first(count).arrays
    root = rng.fold_in(jax.random.key(seed), rng.AUGMENT if train else rng.EVALUATE)
    at = StepContext(train, jnp.int32(0), jnp.int32(0), system.hparams)

    @jax.jit
    def drawn(batch):
        batch = batch | {"real": jnp.ones(len(batch["id"]))}
        return system.task.augment(rng.row_keys(root, batch["id"]), batch, at)

    return jax.device_get(drawn(batch))


def eval_step(kept, data, hparams, epoch, rows, *, task, axis):
    """One batch: loss terms (means over the real rows of all devices) and the task's rows [B].

    The loss is that of training in `epoch`.
    """
    at = StepContext(False, jnp.int32(0), epoch, hparams, axis)
    batch = prepared(task, data, rows, at)
    _, (_, terms) = task.loss(kept, batch, jax.random.key(0), at)
    measures = task.measure(task.predict(kept, batch["image"]), batch)
    return parallel.total(terms, axis), measures


def summary(scores, operations, seconds):
    """What a pass took, for people: error rate, operations, seconds, operations a second."""
    wrong = {"error_rate": 1 - scores["accuracy"]} if "accuracy" in scores else {}
    speed = {"operations_per_second": operations / seconds}
    return {**wrong, "operations": operations, "seconds": seconds, **speed}


class Evaluator:
    """Scores of one split, compiled once: `evaluator(variables, epoch) -> {name: value}`.

    `loss` and its terms are means over the split; the other names are those of `task.report`.
    `epoch` is the one whose loss it is, see `epoch` of a state.
    `data` are the arrays of the split, where they are on the devices `among` already.
    """

    def __init__(self, system, split, batch, among, data=None):
        parallel.check(batch, among, "--eval-batch")
        self.source = source = system.splits[split]
        self.task, self.among = system.task, among
        self.data = parallel.put(source.arrays, among) if data is None else data
        self.hparams = parallel.put(system.hparams, among)
        self.rows = sampler.eval_batches(len(source), batch)
        self.count = len(source)
        step = partial(eval_step, task=self.task)
        self.step = parallel.compiled(step, among, whole=4, out_axes=(None, 0))

    def operations(self, kept):
        """Additions, multiplications and all else of the network's answers for the split."""
        rows = {"index": np.zeros(1, np.int32), "real": np.ones(1, np.float32)}
        at = StepContext(False, jnp.int32(0), jnp.int32(0), self.hparams)
        data = self.source.first(1).arrays
        batch = jax.eval_shape(lambda data: prepared(self.task, data, rows, at), data)
        return flops.count(self.task.predict, kept, batch["image"]).total() * self.count

    def _batches(self):
        """(rows, which of them are real) of every batch."""
        index, real = self.rows
        return zip(self.source.batches(index), real, strict=True)

    def prepare(self, kept):
        """Compile, so that a pass that is timed does not."""
        index, real = next(self._batches())
        kept = parallel.put(kept, self.among)
        rows = {"index": index, "real": real}
        jax.block_until_ready(self.step(kept, self.data, self.hparams, np.int32(0), rows))

    def __call__(self, kept, epoch, pause=lambda: None, hparams=None):
        """Scores under the variables `kept`, and under other numbers than the system's if given.

        `pause` is called between batches (it may raise).
        """
        losses, rows = self.measured(kept, epoch, pause, hparams)
        return {**losses, **self.task.report(rows)}

    def measured(self, kept, epoch, pause=lambda: None, hparams=None):
        """The means of the terms of the loss, and all rows that the task measures, on the host."""
        kept, hparams = parallel.put(kept, self.among), hyper or self.hparams
        found, epoch = [], np.int32(epoch)  # one program for all epochs
        for index, real in self._batches():
            pause()
            rows = {"index": index, "real": real}
            found.append(self.step(kept, self.data, hparams, epoch, rows))
        terms, measures = zip(*jax.device_get(found), strict=True)
        weights = self.rows[1].sum(1) / self.count
        losses = {
            name: float(sum(w * t[name] for w, t in zip(weights, terms, strict=True)))
            for name in terms[0]
        }
        measures = [parallel.unshard(m, len(self.among)) for m in measures]
        return losses, jax.tree.map(lambda *parts: np.concatenate(parts)[: self.count], *measures)
