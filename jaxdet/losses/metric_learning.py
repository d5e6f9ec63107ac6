"""Metric-learning losses: element-wise losses of embeddings, or logits for a cross-entropy.

Losses have one value per element, which the caller masks and averages.  Where elements can be
invalid, a mask is returned as well: `(loss * valid).sum() / jnp.maximum(valid.sum(), 1)`.

Features are the embeddings [B, D] of a batch.  Weights and centers [K, D] have a row per class:
`weights` is the transposed kernel of a linear layer.  Rows with label -1 get logits without a
margin, for evaluation.  Everything is computed in float32 or wider.  Gradients are finite, also for
zero vectors, equal vectors and angles of 0 and pi.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxdet.ops import embeddings
from jaxdet.ops.numerics import as_float32
from jaxdet.types import Array


def center(features: Array, centers: Array, labels: Array) -> jax.Array:
    """Center loss [B]: half the squared distance of features [B, D] to the center of their class.

    No gradient flows to the centers [K, D]; `center_sums` and `center_update` move them.
    Wen et al. 2016 (ECCV), who add it to the cross-entropy with weight 0.003.
    """
    return embeddings.distance(features, jax.lax.stop_gradient(centers)[labels]) ** 2 / 2


def center_sums(
    features: Array, centers: Array, labels: Array, mask: Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(sums [K, D] of center minus feature, numbers [K] of rows) of each class in a batch.

    mask [B]: the rows that count; all by default.  Sum both results over devices before
    `center_update`.
    """
    chex.assert_equal_shape_prefix([features, labels], 1)
    mask = jnp.ones(len(labels)) if mask is None else as_float32(mask)
    difference = as_float32(centers)[labels] - as_float32(features)
    difference, mask = jax.lax.stop_gradient((difference, mask))
    zeros = jnp.zeros(centers.shape, difference.dtype)
    sums = zeros.at[labels].add(mask[:, None] * difference)
    return sums, zeros[:, 0].at[labels].add(mask)


def center_update(centers: Array, sums: Array, counts: Array, *, rate: float = 0.5) -> Array:
    """Centers [K, D] moved towards the features of their class; classes without features stay.

    sums [K, D], counts [K]: results of `center_sums`.

    The center of a class with n rows moves by a fraction rate * n / (n + 1) of the way to the mean
    of their features.  Wen et al. 2016 (ECCV), equation 4, where `rate` is alpha.
    """
    return (centers - rate * sums / (1 + counts[:, None])).astype(centers.dtype)


def pair_masks(labels: Array, mask: Array | None = None) -> tuple[jax.Array, jax.Array]:
    """(same, valid) [B, B] of all pairs of rows of labels [B].

    same: both rows have the same label.  valid: they are two different rows, and both are in `mask`
    [B], by default all rows.
    """
    labels = jnp.asarray(labels)
    mask = jnp.ones(len(labels), bool) if mask is None else jnp.asarray(mask, bool)
    different_rows = ~jnp.eye(len(labels), dtype=bool)
    return labels[:, None] == labels[None], mask[:, None] & mask[None] & different_rows


def contrastive(a: Array, b: Array, same: Array, *, margin: float = 1.0) -> jax.Array:
    """Contrastive loss [...] of pairs a and b [..., D], broadcasting.

    With the Euclidean distance d of a pair, the loss is d^2 / 2 for pairs of the same class (`same`
    [...]), and max(0, margin - d)^2 / 2 for other pairs.  `contrastive(x[:, None], x[None], same)`,
    with the masks of `pair_masks`, has all pairs of a batch, each pair twice.  Hadsell et al. 2006
    (CVPR); the default margin is pytorch-metric-learning's, for unit vectors.
    """
    distance = embeddings.distance(a, b)
    return jnp.where(same, distance, jax.nn.relu(margin - distance)) ** 2 / 2


def triplet_hard(
    features: Array,
    labels: Array,
    mask: Array | None = None,
    *,
    margin: float = 0.2,
    soft: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Batch-hard triplet loss of each row as the anchor: (loss [B], valid [B]).

    The loss is max(0, d_p - d_n + margin), with the distances d_p to the farthest positive and d_n
    to the nearest negative; 0 for invalid anchors.

    valid: whether the anchor is in `mask` [B], by default all rows, and has a positive and a
      negative.
    soft: use softplus instead of max(0, .), best with margin 0.
    Hermans et al. 2017, arXiv:1703.07737.
    """
    distance, same, valid = _pairwise(features, labels, mask)
    positive, negative = same & valid, ~same & valid
    farthest = distance.max(1, where=positive, initial=0)
    nearest = distance.min(1, where=negative, initial=jnp.inf)
    return _hinge(farthest - nearest + margin, positive.any(1) & negative.any(1), soft)


def triplet_semihard(
    features: Array,
    labels: Array,
    mask: Array | None = None,
    *,
    margin: float = 0.2,
    soft: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Semi-hard triplet loss of each (anchor, positive): (loss [B, B], valid [B, B]).

    The loss is max(0, d_p^2 - d_n^2 + margin), with the distances d_p to the positive and d_n to
    the nearest negative that is farther than the positive or, if there is none, to the farthest
    negative, as in TensorFlow Addons; 0 for invalid pairs.

    valid: whether both rows are in `mask` [B] and of the same class, and the anchor has a negative.
    soft: as in `triplet_hard`.
    Schroff et al. 2015, arXiv:1503.03832, for features of norm 1 and with the default margin.
    """
    distance, same, valid = _pairwise(features, labels, mask)
    squared = distance**2
    positive, negative = same & valid, ~same & valid
    farther = negative[:, None] & (squared[:, None] > squared[:, :, None])  # [anchor, positive, B]
    candidates = jnp.broadcast_to(squared[:, None], farther.shape)
    nearest = candidates.min(2, where=farther, initial=jnp.inf)
    farthest = squared.max(1, where=negative, initial=0)[:, None]
    chosen = jnp.where(farther.any(2), nearest, farthest)
    return _hinge(squared - chosen + margin, positive & negative.any(1)[:, None], soft)


def l_softmax(
    features: Array, weights: Array, labels: Array, *, margin: float = 4, annealing: float = 0.0
) -> jax.Array:
    """Large-margin softmax logits [B, K]: |w| |x| cos(angle), made harder for the true class.

    For the true class, psi(angle) = (-1)^k cos(margin * angle) - 2k replaces the cosine, with
    k = floor(margin * angle / pi), at most margin - 1.

    margin: 1 (linear logits), 2, 3 or 4.
    annealing: lambda of the paper: psi is replaced by the mean of psi, with weight 1, and the
      cosine, with this weight.  The paper decreases it during training.
    Liu et al. 2016, arXiv:1612.02295.
    """
    margin = int(margin)
    borders = jnp.cos(jnp.arange(1, margin) * jnp.pi / margin)

    def psi(cosine):
        k = (cosine[..., None] < borders.reshape(1, 1, -1)).sum(-1)
        hard = jnp.where(k % 2, -1, 1) * _chebyshev(cosine, margin) - 2 * k
        return (annealing * cosine + hard) / (1 + annealing)

    norms = embeddings.norm(features)[:, None] * embeddings.norm(weights)[None]
    return norms * _at_label(embeddings.pairwise_cosine(features, weights), labels, psi)


def arcface(
    features: Array, weights: Array, labels: Array, *, scale: float = 64.0, margin: float = 0.5
) -> jax.Array:
    """Additive angular margin logits [B, K]: scale * cos(angle), with a margin in the true class.

    The logit of the true class is scale * cos(angle + margin).  Beyond an angle of pi - margin,
    where this cosine would rise again, it is scale * (cos(angle) - margin * sin(margin)), as in
    insightface.

    margin: in radians, at most pi.
    Deng et al. 2018, arXiv:1801.07698, with its defaults.
    """

    def with_margin(cosine):
        squared = 1 - cosine**2
        inside = squared > 0  # the square root has an infinite slope at 0
        sine = jnp.where(inside, jnp.sqrt(jnp.where(inside, squared, 1)), 0)
        angular = cosine * jnp.cos(margin) - sine * jnp.sin(margin)
        return jnp.where(
            cosine > jnp.cos(jnp.pi - margin), angular, cosine - margin * jnp.sin(margin)
        )

    return scale * _at_label(embeddings.pairwise_cosine(features, weights), labels, with_margin)


def cosface(
    features: Array, weights: Array, labels: Array, *, scale: float = 64.0, margin: float = 0.35
) -> jax.Array:
    """Additive cosine margin logits [B, K]: scale * cos(angle), with a margin in the true class.

    The logit of the true class is scale * (cos(angle) - margin).  Wang et al. 2018,
    arXiv:1801.09414, with its defaults.
    """
    cosines = embeddings.pairwise_cosine(features, weights)
    return scale * _at_label(cosines, labels, lambda cosine: cosine - margin)


def lgm(
    features: Array,
    means: Array,
    labels: Array,
    log_variances: Array | float = 0.0,
    *,
    margin: float = 0.1,
) -> tuple[jax.Array, jax.Array]:
    """Large-margin Gaussian mixture: (logits [B, K], likelihood loss [B]).

    Each class is a Gaussian with `means` [K, D] and diagonal `log_variances`, which broadcast to
    [K, D].  Logits are -(squared Mahalanobis distance + log determinant) / 2, where the squared
    distance to the true class is multiplied by 1 + margin.  The likelihood loss is minus the logit
    of the true class without the margin.  Wan et al. 2018, arXiv:1803.02988.  The default margin
    (alpha in the paper) is taken from public implementations, which add the likelihood loss to the
    cross-entropy with weight 0.01.
    """
    x, means = as_float32(features), as_float32(means)
    log_variances = jnp.broadcast_to(as_float32(jnp.asarray(log_variances)), means.shape)
    precision = jnp.exp(-log_variances)
    squared = embeddings.pairwise_dot(x**2, precision)
    squared -= 2 * embeddings.pairwise_dot(x, means * precision)
    squared = jax.nn.relu(squared + (means**2 * precision).sum(1)[None])  # [B, K]
    own = ((x - means[labels]) ** 2 * precision[labels]).sum(1)  # no cancellation near the mean
    log_det = log_variances.sum(1)
    squared = jnp.where(_is_label(labels, squared), (1 + margin) * own[:, None], squared)
    return -(log_det[None] + squared) / 2, (own + log_det[labels]) / 2


def _pairwise(features, labels, mask) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(distance, same, valid) [B, B] of all pairs of rows."""
    chex.assert_rank([features, labels], [2, 1])
    return embeddings.distance(features[:, None], features[None]), *pair_masks(labels, mask)


def _hinge(violation, valid, soft) -> tuple[jax.Array, jax.Array]:
    loss = jax.nn.softplus(violation) if soft else jax.nn.relu(violation)
    return jnp.where(valid, loss, 0), valid


def _at_label(cosines: Array, labels: Array, change: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Apply `change` to the cosine of the true class, where the label is in 0..K - 1."""
    chex.assert_shape(labels, cosines.shape[:1])
    own = jnp.take_along_axis(cosines, labels[:, None], 1, mode="clip")  # [B, 1]
    return jnp.where(_is_label(labels, cosines), change(own), cosines)


def _is_label(labels, logits) -> jax.Array:
    """Mask [B, K]: whether a class is the label of the row."""
    return labels[:, None] == jnp.arange(logits.shape[1])[None]


def _chebyshev(cosine, degree) -> jax.Array:
    """cos(degree * angle) from cos(angle): the Chebyshev polynomial of the first kind."""
    before, now = jnp.ones_like(cosine), cosine
    for _ in range(degree - 1):
        before, now = now, 2 * cosine * now - before
    return now
