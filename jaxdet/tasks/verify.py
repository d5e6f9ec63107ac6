"""Who is on an image, and embeddings by which images of strangers are compared (seed 004)."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdet import tasks
from jaxdet.data.normalize import CENTERED, Normalization, normalize
from jaxdet.losses import metric_learning as pulls
from jaxdet.metrics import verification as verification_metrics
from jaxdet.ops import embeddings
from jaxdet.training import parallel
from jaxdet.types import Task

Head = Literal["softmax", "arcface", "cosface", "l_softmax", "lgm"]
Pull = Literal["none", "center", "contrastive", "triplet_hard", "triplet_semihard"]
LIKELIHOOD = 0.01  # weight of the likelihood beside L-GM's cross entropy, as in public copies
PAIRED = 4096  # images of a split, at most, of which all pairs are judged
CENTRES = "centres"  # their name among the batch statistics


class Verifier(NamedTuple):
    """The functions of the task, and what they share.

    `net` is a `models.embedder.Embedder`, with `variances` for the head lgm.  `change(key, image)`
    alters one training image of levels in [0, 255].  `head` makes logits of embeddings, with the
    margins of its paper; `pull` is a loss of embeddings beside their cross entropy.  `smoothing` is
    that of labels in training (Szegedy et al. 2015, arXiv:1512.00567).  `at.hyper` has `dropout`, a
    factor of the network's rates, and `pull_weight`.
    """

    net: Any
    classes: int
    change: Callable | None = None
    head: Head = "softmax"
    pull: Pull = "none"
    margins: tuple = ()  # (name, value) of the head's, where they are not those of its paper
    smoothing: float = 0.0
    mirrored: bool = False
    levels: Normalization = CENTERED

    def task(self):
        """These functions as a `types.Task`."""
        return Task(self.init, self.augment, self.loss, self.predict, self.measure, report)

    def init(self, key, batch):
        """Variables of the network, and centres of the classes where they are asked for."""
        variables = self.net.init(key, batch["image"])
        if self.pull == "center":
            (embedding, _) = jax.eval_shape(self.net.apply, variables, batch["image"])
            centres = jnp.zeros((self.classes, embedding.shape[1]))
            stats = {**variables.get("batch_stats", {}), CENTRES: centres}
            return {**variables, "batch_stats": stats}
        return variables

    def augment(self, keys, batch, at):
        """Images as levels in [0, 1]; in training each is changed."""
        image = batch["image"]
        if at.train and self.change:
            image = jax.vmap(self.change)(keys, image)
        return batch | {"image": image / jnp.float32(255)}

    def loss(self, variables, batch, key, at):
        """The share of the loss, and its terms as means over images."""
        images, extra = normalize(batch["image"], self.levels), {"drop": at.hyper["dropout"]}
        variables, centres = _without_centres(variables)
        made, stats = tasks.forward(key, self.net, variables, images, at, **extra)
        embedding, logits = made[0], self._fair(variables, *made)
        margin, likelihood = logits, 0.0
        if at.train and self.head != "softmax":
            margin, likelihood = self._headed(variables, embedding, batch["label"])
        wanted = jax.nn.one_hot(batch["label"], self.classes)
        wanted = optax.smooth_labels(wanted, self.smoothing if at.train else 0.0)
        rows = tasks.real_rows(batch, at)
        terms = {
            "accuracy": (logits.argmax(-1) == batch["label"]).astype(jnp.float32),
            "classification": optax.softmax_cross_entropy(margin, wanted) + likelihood,
        }
        terms = {name: values @ batch["real"] / rows for name, values in terms.items()}
        terms["loss"] = terms["classification"]
        if self.pull != "none":
            terms["pull"] = self._pulled(embedding, centres, batch, at)
            terms["loss"] += at.hyper["pull_weight"] * terms["pull"]
        if centres is not None:
            moved = self._moved(embedding, centres, batch, at) if at.train else centres
            stats = {**stats, CENTRES: moved}
        return terms["loss"], (stats, terms)

    def _fair(self, variables, embedding, logits):
        """Logits [B, K] without a margin, as the head makes them of embeddings [B, D]."""
        if self.head == "softmax":
            return logits
        nobody = jnp.full(len(embedding), -1)
        return self._headed(variables, embedding, nobody)[0]

    def _headed(self, variables, embedding, labels):
        """(logits [B, K] with the head's margin at the labels [B], likelihood loss [B] or 0)."""
        weights = variables["params"]["logits"]["kernel"].T  # [K, D]
        given = embedding, weights, labels
        if self.head == "lgm":
            spread = variables["params"]["gaussians"]["log"]
            logits, likelihood = pulls.lgm(*given, spread, **dict(self.margins))
            return logits, LIKELIHOOD * likelihood
        return getattr(pulls, self.head)(*given, **dict(self.margins)), 0.0

    def _pulled(self, embedding, centres, batch, at):
        """This device's share of the mean of the loss of embeddings, over what of it is valid."""
        label, on = batch["label"], batch["real"] > 0
        match self.pull:
            case "center":
                values, valid = pulls.center(embedding, centres, label), on
            case "contrastive":
                x = embeddings.l2_normalize(embedding)
                same, valid = pulls.pair_masks(label, on)
                values = pulls.contrastive(x[:, None], x[None], same)
            case name:
                values, valid = getattr(pulls, name)(embeddings.l2_normalize(embedding), label, on)
        count = jax.lax.stop_gradient(parallel.total(valid.sum(), at.axis))
        return (values * valid).sum() / jnp.maximum(count, 1)

    def _moved(self, embedding, centres, batch, at):
        """The centres after a batch, of all devices."""
        sums = pulls.center_sums(embedding, centres, batch["label"], batch["real"])
        return pulls.center_update(centres, *parallel.total(sums, at.axis))

    def predict(self, variables, images):
        """`label [B]`, `score [B]` (a softmax's) and `embedding [B, D]` of images [B, H, W, C].

        With `mirrored` the embedding is the sum of those of an image and of its mirror image.
        """
        variables, _ = _without_centres(variables)
        embedding, logits = self.net.apply(variables, normalize(images, self.levels), train=False)
        chances = jax.nn.softmax(self._fair(variables, embedding, logits))
        if self.mirrored:
            other, _ = self.net.apply(
                variables, normalize(images[:, :, ::-1], self.levels), train=False
            )
            embedding += other
        return {"label": chances.argmax(-1), "score": chances.max(-1), "embedding": embedding}

    def measure(self, predictions, batch):
        """Labels, true and predicted, [B], and embeddings [B, D] of length 1."""
        return {
            "label": batch["label"],
            "predicted": predictions["label"],
            "embedding": embeddings.l2_normalize(predictions["embedding"]),
        }


def report(rows):
    """Accuracy of the labels; AUC and equal error rate of all pairs of images, by their cosine.

    Pairs are those of the first `PAIRED` images; without pairs of both kinds the two are left out.
    """
    right = rows["label"] == rows["predicted"]
    found = {"count": len(right), "correct": int(right.sum()), "accuracy": float(right.mean())}
    scores, same = pairs(rows["embedding"][:PAIRED], rows["label"][:PAIRED])
    if not same.size or same.all() or not same.any():
        return found
    return found | {
        "auc": verification_metrics.auc(scores, same),
        "eer": verification_metrics.eer(scores, same),
    }


def pairs(embedding, label):
    """(cosine, whether of one person) of all pairs of N images: [N (N - 1) / 2] each.

    embedding: [N, D] of length 1; label: [N].
    """
    first, second = np.triu_indices(len(label), 1)
    cosine = np.asarray(embedding, np.float32) @ np.asarray(embedding, np.float32).T
    return cosine[first, second], label[first] == label[second]


def _without_centres(variables):
    """(variables as the network has them, centres [K, D] or None)."""
    stats = dict(variables.get("batch_stats", {}))
    centres = stats.pop(CENTRES, None)
    rest = {name: tree for name, tree in variables.items() if name != "batch_stats"}
    return {**rest, **({"batch_stats": stats} if stats else {})}, centres
