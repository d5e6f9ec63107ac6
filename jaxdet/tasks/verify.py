"""Face classification, and embeddings that compare identities not seen in training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxdet.data.normalize import CENTERED, Normalization, normalize
from jaxdet.losses import metric_learning
from jaxdet.metrics import bootstrap
from jaxdet.metrics import verification as verification_metrics
from jaxdet.ops import embeddings
from jaxdet.tasks.base import class_factors, forward, masked_means
from jaxdet.training import parallel
from jaxdet.types import Array, Batch, StepContext, Tree

Head = Literal["softmax", "arcface", "cosface", "l_softmax", "lgm"]
EmbeddingLoss = Literal["none", "center", "contrastive", "triplet_hard", "triplet_semihard"]
LIKELIHOOD_WEIGHT = 0.01  # of L-GM's likelihood loss beside the cross-entropy, as in public code
MAX_PAIRED_IMAGES = 4096  # largest number of images of a split whose pairs are scored
CENTERS = "centres"  # key of the class centers among the batch statistics of a checkpoint


@dataclass(frozen=True)
class VerificationTask:
    """Classification of known identities, with embeddings that can also compare unknown identities.

    net: a `models.embedder.Embedder`, with `variances` for the head "lgm".
    num_classes: number of identities in training.
    transform: function (key, image) -> image that augments one training image with values in
      [0, 255]; None: no augmentation.
    head: how logits are computed from embeddings.
    embedding_loss: loss of the embeddings that is added to the cross-entropy.
    margins: (name, value) pairs of the head's arguments that differ from the defaults of its paper.
    tta: whether predictions add the embedding of the mirror image to the embedding of an image.
    class_weights: in training, factors of the classification losses of images of each identity; ():
      none.

    `context.hparams` holds `dropout`, a factor of the network's dropout rates, and
    `embedding_loss_weight`.
    """

    net: nn.Module
    num_classes: int
    transform: Callable | None = None
    head: Head = "softmax"
    embedding_loss: EmbeddingLoss = "none"
    margins: tuple[tuple[str, float], ...] = ()
    label_smoothing: float = 0.0
    tta: bool = False
    normalization: Normalization = CENTERED
    class_weights: tuple[float, ...] = ()

    def init(self, key: jax.Array, batch: Batch) -> Tree:
        """Variables of the network and, if the embedding loss needs them, class centers."""
        variables: Any = self.net.init(key, batch["image"])
        if self.embedding_loss == "center":
            (embedding, _) = jax.eval_shape(self.net.apply, variables, batch["image"])
            centers = jnp.zeros((self.num_classes, embedding.shape[1]))
            stats = {**variables.get("batch_stats", {}), CENTERS: centers}
            return {**variables, "batch_stats": stats}
        return variables

    def augment(self, keys: jax.Array, batch: Batch, context: StepContext) -> Batch:
        """The batch with images scaled to [0, 1]; in training they are augmented."""
        image = batch["image"]
        if context.train and self.transform:
            image = jax.vmap(self.transform)(keys, image)
        return batch | {"image": image / jnp.float32(255)}

    def loss(
        self, variables: Tree, batch: Batch, key: jax.Array, context: StepContext
    ) -> tuple[Array, tuple[Tree, dict[str, Array]]]:
        """This device's contribution to the mean loss over images, and to its terms.

        Class weights are weights of the mean of the classification losses.
        """
        images = normalize(batch["image"], self.normalization)
        scale = context.hparams["dropout"]
        variables, centers = _split_centers(variables)
        (embedding, raw), stats = forward(
            key, self.net, variables, images, context, dropout_scale=scale
        )
        logits = self._plain_logits(variables, embedding, raw)
        margin_logits, likelihood = logits, 0.0
        if context.train and self.head != "softmax":
            margin_logits, likelihood = self._margin_logits(variables, embedding, batch["label"])
        target = jax.nn.one_hot(batch["label"], self.num_classes)
        target = optax.smooth_labels(target, self.label_smoothing if context.train else 0.0)
        correct = (logits.argmax(-1) == batch["label"]).astype(jnp.float32)
        losses = optax.softmax_cross_entropy(margin_logits, target) + likelihood
        factors = class_factors(target, self.class_weights, context)
        terms = masked_means({"accuracy": correct}, batch, context)
        terms |= masked_means({"classification": losses}, batch, context, factors)
        terms["loss"] = terms["classification"]
        if self.embedding_loss != "none":
            terms["embedding"] = self._embedding_term(embedding, centers, batch, context)
            terms["loss"] += context.hparams["embedding_loss_weight"] * terms["embedding"]
        if centers is not None:
            if context.train:
                sums = metric_learning.center_sums(
                    embedding, centers, batch["label"], batch["real"]
                )
                sums = parallel.psum(sums, context.axis)
                centers = metric_learning.center_update(centers, *sums)
            stats = {**stats, CENTERS: centers}
        return terms["loss"], (stats, terms)

    def predict(self, variables: Tree, images: Array) -> dict[str, Array]:
        """`label`, `score [B]`, `probabilities [B, K]` and `embedding [B, D]`."""
        variables, _ = _split_centers(variables)
        inputs = normalize(images, self.normalization)
        outputs: Any = self.net.apply(variables, inputs, train=False)
        embedding, raw = outputs
        probabilities = jax.nn.softmax(self._plain_logits(variables, embedding, raw))
        if self.tta:
            embedding += self._mirrored_embedding(variables, images)
        return {
            "label": probabilities.argmax(-1),
            "score": probabilities.max(-1),
            "probabilities": probabilities,
            "embedding": embedding,
        }

    def embed(self, variables: Tree, images: Array) -> Array:
        """Embeddings [B, D], not normalized, of images [B, H, W, C]."""
        return self.predict(variables, images)["embedding"]

    def measure(self, predictions: dict[str, Array], batch: Batch) -> dict[str, Array]:
        """True and predicted labels [B], and embeddings [B, D] of norm 1."""
        return {
            "label": batch["label"],
            "predicted": predictions["label"],
            "embedding": embeddings.l2_normalize(predictions["embedding"]),
        }

    def bootstrap(self, rows: dict[str, Array], resamples: int) -> dict[str, np.ndarray]:
        """Accuracy of resampled images.

        There is no AUC, since an image that is drawn twice would be paired with itself.
        """
        correct = {"correct": rows["label"] == rows["predicted"]}
        return bootstrap.resample(
            lambda drawn: {"accuracy": float(drawn["correct"].mean())}, correct, resamples=resamples
        )

    def report(self, rows: dict[str, Array]) -> dict[str, Any]:
        """Accuracy of the labels; AUC and equal error rate of all pairs, by cosine similarity.

        Only the first `MAX_PAIRED_IMAGES` images are paired.  AUC and EER are left out unless there
        are both pairs of the same identity and pairs of different identities.
        """
        correct = rows["label"] == rows["predicted"]
        scores = {
            "count": len(correct),
            "correct": int(correct.sum()),
            "accuracy": float(correct.mean()),
        }
        first = slice(MAX_PAIRED_IMAGES)
        cosines, same = all_pairs(rows["embedding"][first], rows["label"][first])
        if not same.size or same.all() or not same.any():
            return scores
        return scores | {
            "auc": verification_metrics.auc(cosines, same),
            "eer": verification_metrics.eer(cosines, same),
        }

    def _plain_logits(self, variables: Tree, embedding: Array, raw: Array) -> Array:
        """Logits [B, K] of the head without a margin."""
        if self.head == "softmax":
            return raw
        no_label = jnp.full(embedding.shape[:1], -1)
        return self._margin_logits(variables, embedding, no_label)[0]

    def _margin_logits(self, variables: Tree, embedding: Array, labels: Array) -> tuple:
        """(logits [B, K] with a margin for the labels [B], likelihood loss [B] or 0)."""
        weights = variables["params"]["logits"]["kernel"].T  # [K, D]
        margins: dict[str, Any] = dict(self.margins)
        if self.head == "lgm":
            log_variance = variables["params"]["gaussians"]["log"]
            logits, likelihood = metric_learning.lgm(
                embedding, weights, labels, log_variance, **margins
            )
            return logits, LIKELIHOOD_WEIGHT * likelihood
        head = getattr(metric_learning, self.head)
        return head(embedding, weights, labels, **margins), 0.0

    def _embedding_term(
        self, embedding: Array, centers: Array | None, batch: Batch, context: StepContext
    ) -> Array:
        """This device's contribution to the mean of the embedding loss over valid elements."""
        label, mask = batch["label"], batch["real"] > 0
        match self.embedding_loss:
            case "center":
                values, valid = metric_learning.center(embedding, centers, label), mask
            case "contrastive":
                x = embeddings.l2_normalize(embedding)
                same, valid = metric_learning.pair_masks(label, mask)
                values = metric_learning.contrastive(x[:, None], x[None], same)
            case name:
                x = embeddings.l2_normalize(embedding)
                values, valid = getattr(metric_learning, name)(x, label, mask)
        count = jax.lax.stop_gradient(parallel.psum(valid.sum(), context.axis))
        return (values * valid).sum() / jnp.maximum(count, 1)

    def _mirrored_embedding(self, variables: Tree, images: Array) -> Array:
        mirrored = normalize(images[:, :, ::-1], self.normalization)
        return self.net.apply(variables, mirrored, train=False)[0]


def all_pairs(embedding: Array, label: Array) -> tuple[np.ndarray, np.ndarray]:
    """(cosine similarity, whether the identity is the same) of all N (N - 1) / 2 pairs of N images.

    embedding: embeddings [N, D] of norm 1.
    label: their labels [N].
    """
    first, second = np.triu_indices(len(label), 1)
    cosine = np.asarray(embedding, np.float32) @ np.asarray(embedding, np.float32).T
    label = np.asarray(label)
    return cosine[first, second], label[first] == label[second]


def _split_centers(variables: Tree) -> tuple[Tree, Array | None]:
    """(variables of the network, class centers [K, D] or None)."""
    stats = dict(variables.get("batch_stats", {}))
    centers = stats.pop(CENTERS, None)
    rest = {name: tree for name, tree in variables.items() if name != "batch_stats"}
    return {**rest, **({"batch_stats": stats} if stats else {})}, centers
