"""Metric-learning losses: element-wise, or logits for a cross entropy.

A number for each element, which the caller masks and averages; where an element may not count, a
mask comes with it: `(loss * valid).sum() / jnp.maximum(valid.sum(), 1)`.

Features are embeddings [B, D] of a batch, weights and centres [K, D] have a row a class: `weights`
are a linear layer's kernel turned over.  Rows labelled -1 have logits without a margin, which are
those to evaluate: a head's are not those of the linear layer.  Computed in float32 at least;
gradients are finite, also of zeros, equal vectors and angles of 0 and pi.
"""

import chex
import jax
import jax.numpy as jnp

from jaxdet.ops import embeddings
from jaxdet.ops.numerics import as_float32


def center(features, centres, labels):
    """Half the squared distance of features [B, D] to the centre [K, D] of their class: [B].

    No gradient goes to the centres, which `center_sums` and `center_update` move.
    Wen et al. 2016 (ECCV), who weigh it by 0.003 beside the cross entropy.
    """
    return embeddings.distance(features, jax.lax.stop_gradient(centres)[labels]) ** 2 / 2


def center_sums(features, centres, labels, on=None):
    """What a batch says of the centres [K, D]: sums of centre less feature [K, D], counts [K].

    on [B]: which rows count; all if None.  Of several devices, these are to be added.
    """
    chex.assert_equal_shape_prefix([features, labels], 1)
    on = jnp.ones(len(labels)) if on is None else as_float32(on)
    apart = as_float32(centres)[labels] - as_float32(features)
    apart, on = jax.lax.stop_gradient((apart, on))
    zeros = jnp.zeros(centres.shape, apart.dtype)
    return zeros.at[labels].add(on[:, None] * apart), zeros[:, 0].at[labels].add(on)


def center_update(centres, sums, counts, *, rate=0.5):
    """Centres [K, D] moved towards the features of their class; one that has none stays.

    A class of n rows moves by rate x n / (n + 1) of the way to their mean.  Wen et al. 2016
    (ECCV), equation 4; rate: their alpha.
    """
    return (centres - rate * sums / (1 + counts[:, None])).astype(centres.dtype)


def pair_masks(labels, on=None):
    """(same, valid) of all pairs [B, B] of rows of labels [B].

    valid: the two are not one row, and both are `on` [B]; all are if None.
    """
    on = jnp.ones(len(labels), bool) if on is None else on.astype(bool)
    other = ~jnp.eye(len(labels), dtype=bool)
    return labels[:, None] == labels[None], on[:, None] & on[None] & other


def contrastive(a, b, same, *, margin=1.0):
    """Loss of pairs a and b [..., D] of one person (`same` [...]) or of two, broadcasting: [...].

    d^2 / 2 of one person, max(0, margin - d)^2 / 2 of two at a distance of d.  All pairs of a batch
    are `contrastive(x[:, None], x[None], same)`, each twice, with the masks of `pairs`.
    Hadsell et al. 2006 (CVPR); margin: of pytorch-metric-learning, for vectors of length 1.
    """
    apart = embeddings.distance(a, b)
    return jnp.where(same, apart, jax.nn.relu(margin - apart)) ** 2 / 2


def triplet_hard(features, labels, on=None, *, margin=0.2, soft=False):
    """Batch-hard triplet loss of each row as anchor: (loss [B], valid [B]), 0 where not valid.

    Its farthest positive is to be nearer than its nearest negative by `margin`, in units of
    distance.  valid: the row is on and has a positive and a negative.  soft: softplus in place of
    the hinge, best with margin 0.  Hermans et al. 2017, arXiv:1703.07737.
    """
    apart, same, valid = _all_pairs(features, labels, on)
    positive, negative = same & valid, ~same & valid
    farthest = apart.max(1, where=positive, initial=0)
    nearest = apart.min(1, where=negative, initial=jnp.inf)
    return _hinge(farthest - nearest + margin, positive.any(1) & negative.any(1), soft)


def triplet_semihard(features, labels, on=None, *, margin=0.2, soft=False):
    """Semi-hard triplet loss of each (anchor, positive): (loss, valid) [B, B], 0 where not valid.

    Squared distances; of the negatives farther than the positive the nearest counts, and where
    there is none the farthest of all, as in TensorFlow Addons.  valid: a pair of one person whose
    anchor has a negative.  soft: as in `triplet_hard`.
    Schroff et al. 2015, arXiv:1503.03832, whose features have length 1; margin: theirs.
    """
    apart, same, valid = _all_pairs(features, labels, on)
    apart = apart**2
    positive, negative = same & valid, ~same & valid
    beyond = negative[:, None] & (apart[:, None] > apart[:, :, None])  # [anchor, positive, B]
    outside = jnp.broadcast_to(apart[:, None], beyond.shape).min(2, where=beyond, initial=jnp.inf)
    inside = apart.max(1, where=negative, initial=0)[:, None]
    chosen = jnp.where(beyond.any(2), outside, inside)
    return _hinge(apart - chosen + margin, positive & negative.any(1)[:, None], soft)


def l_softmax(features, weights, labels, *, margin=4, easing=0.0):
    """Large-margin logits [B, K]: |w| |x| cos(angle), that of the own class made harder.

    There psi(angle) = (-1)^k cos(margin x angle) - 2k stands for the cosine, with k the number of
    whole pi / margin in the angle; margin is 1 (plain linear logits), 2, 3 or 4, a float of that
    value as well.  easing: the paper's lambda, the weight of the plain cosine, which falls as
    training goes on.
    Liu et al. 2016, arXiv:1612.02295; a label outside of 0 to K - 1 leaves its row plain.
    """
    margin = int(margin)
    borders = jnp.cos(jnp.arange(1, margin) * jnp.pi / margin)

    def psi(cosine):
        k = (cosine[..., None] < borders.reshape(1, 1, -1)).sum(-1)
        hard = jnp.where(k % 2, -1, 1) * _chebyshev(cosine, margin) - 2 * k
        return (easing * cosine + hard) / (1 + easing)

    lengths = embeddings.norm(features)[:, None] * embeddings.norm(weights)[None]
    return lengths * _own(embeddings.pairwise_cosine(features, weights), labels, psi)


def arcface(features, weights, labels, *, scale=64.0, margin=0.5):
    """Additive angular margin logits [B, K]: scale x cosine, of the own class cos(angle + margin).

    margin: in radians, at most pi; beyond an angle of pi - margin, where that would rise again, it
    is cosine - margin x sin(margin), as in insightface.  A label outside of 0 to K - 1 leaves its
    row plain.  Deng et al. 2018, arXiv:1801.07698; the defaults are theirs.
    """

    def further(cosine):
        squared = 1 - cosine**2
        turned = squared > 0  # the slope of the root is infinite at 0
        sine = jnp.where(turned, jnp.sqrt(jnp.where(turned, squared, 1)), 0)
        angular = cosine * jnp.cos(margin) - sine * jnp.sin(margin)
        return jnp.where(
            cosine > jnp.cos(jnp.pi - margin), angular, cosine - margin * jnp.sin(margin)
        )

    return scale * _own(embeddings.pairwise_cosine(features, weights), labels, further)


def cosface(features, weights, labels, *, scale=64.0, margin=0.35):
    """Additive margin logits [B, K]: scale x cosine, of the own class scale x (cosine - margin).

    A label outside of 0 to K - 1 leaves its row plain.  Wang et al. 2018, arXiv:1801.09414; the
    defaults are theirs.
    """
    return scale * _own(
        embeddings.pairwise_cosine(features, weights), labels, lambda cosine: cosine - margin
    )


def lgm(features, means, labels, log_variances=0.0, *, margin=0.1):
    """Large-margin Gaussian mixture: (logits [B, K], likelihood loss [B]).

    Each class is a Gaussian of `means` [K, D] and the exponentials of `log_variances`, [K, D] or
    less (0: the identity).  Logits are -(squared Mahalanobis distance + log determinant) / 2, with
    the distance to the own class times 1 + margin; the loss is minus that of the own class without
    the margin.  A label outside of 0 to K - 1 leaves its row of logits plain.
    Wan et al. 2018, arXiv:1803.02988; margin: their alpha, as in public copies, which weigh the
    likelihood by 0.01 beside the cross entropy.
    """
    x, means = as_float32(features), as_float32(means)
    log_variances = jnp.broadcast_to(as_float32(log_variances), means.shape)
    precision = jnp.exp(-log_variances)
    squared = embeddings.pairwise_dot(x**2, precision) - 2 * embeddings.pairwise_dot(
        x, means * precision
    )
    squared = jax.nn.relu(squared + (means**2 * precision).sum(1)[None])  # [B, K]
    own = ((x - means[labels]) ** 2 * precision[labels]).sum(1)  # exact where they all but meet
    volume = log_variances.sum(1)
    squared = jnp.where(_is_own(labels, squared), (1 + margin) * own[:, None], squared)
    return -(volume[None] + squared) / 2, (own + volume[labels]) / 2


def _all_pairs(features, labels, on):
    """Distances, and `pairs`, of the rows of features [B, D]: [B, B] each."""
    chex.assert_rank([features, labels], [2, 1])
    return embeddings.distance(features[:, None], features[None]), *pair_masks(labels, on)


def _hinge(violation, valid, soft):
    """(loss, valid): what of a violation is above 0, or its softplus; 0 where not valid."""
    loss = jax.nn.softplus(violation) if soft else jax.nn.relu(violation)
    return jnp.where(valid, loss, 0), valid


def _own(cosines, labels, change):
    """Cosines [B, K] with change(cosine) at the label [B] of each row."""
    chex.assert_shape(labels, (len(cosines),))
    own = jnp.take_along_axis(cosines, labels[:, None], 1, mode="clip")  # [B, 1]
    return jnp.where(_is_own(labels, cosines), change(own), cosines)


def _is_own(labels, logits):
    """Whether a class is that of the row, [B, K]."""
    return labels[:, None] == jnp.arange(logits.shape[1])[None]


def _chebyshev(cosine, times):
    """cos(times x angle) of the cosine of an angle, of any shape (Chebyshev's polynomials)."""
    before, now = jnp.ones_like(cosine), cosine
    for _ in range(times - 1):
        before, now = now, 2 * cosine * now - before
    return now
