"""The written answers to the questions of seed 001 on sliding windows; every number is computed."""

import textwrap

from jaxdet.configs.digits import Config
from jaxdet.models.sliding import NgSlidingNet, SlidingNet, multiply_adds
from jaxdet.ops import windows

ANDREW = NgSlidingNet()
WINDOW = ANDREW.window
FORMULAS = """\
    window    w = 1 + (k_1 - 1) S_0 + (k_2 - 1) S_1 + ...        where S_0 = 1
    stride    S = 2^(pools)
    count     n = floor((H - w) / S) + 1                         for a side of H pixels
    indices   output i, j sees rows iS ... iS + w - 1 and columns jS ... jS + w - 1"""
VAST = 10**8  # pixels a side: counted, never made


def text():
    """The answers to questions 2 and 4 to 8, as Markdown."""
    return "\n\n".join((two(), four(), five(), six(), seven(), eight()))


def two():
    """What to change in the network."""
    kernel = windows.head_layer(ANDREW.stages, WINDOW).kernel
    channels, width = ANDREW.widths[-1], ANDREW.dense[0]
    inputs = kernel * kernel * channels
    return page(
        "2. What to change in the network",
        f"""Only how its dense layers are written.  The first one reads the {kernel} x {kernel} x
        {channels} = {inputs} features of a window: as a {kernel} x {kernel} convolution with
        {width} outputs it computes the same sums with the same {inputs * width:,} weights, at every
        place where those features fit.  The dense layers after it become 1 x 1 convolutions.
        Nothing is trained again: kernels are reshaped, in the order in which the features were
        flattened (`models.sliding.to_convolutional`).""",
    )


def four():
    """Other sizes, and where the outputs differ."""
    side = windows.grid(ANDREW.chain(), 28, 28).rows
    odd = WINDOW + 1
    dense, slid = counts(ANDREW.stages, odd, 28)
    return page(
        "4. Other sizes",
        f"""28 x 28 pixels give {side} x {side} outputs, one for each window of {WINDOW} pixels at
        stride {stride(ANDREW.stages)}.  For this network both procedures agree at every size from
        {WINDOW} up; an odd last row or column of pixels is left out by both.  They differ once the
        windows are not those that the layers see:""",
        f"""- a window of {odd} pixels: the pool drops the last row of the features of a window, so
        the network looks at {seen(ANDREW.stages, odd).window} pixels, and a side of 28 has {dense}
        outputs in one procedure and {slid} in the other; on 17 pixels it has
        {" and ".join(map(str, counts(ANDREW.stages, odd, 17)))}, and they agree again;""",
        "- padding: zeros lie around the image in one and around every window in the other;",
        "- sliding by another stride than the product of the strides of the layers;",
        "- what mixes windows: batch statistics in training, pooling over the whole image.",
        "`--check` tries these, but for the last, on random weights.",
    )


def five():
    """Which is faster and why."""
    listed = ", ".join(f"{ratio(ANDREW, size):.4f} at {size}" for size in (16, 28, 720, 1080))
    one, dense = multiply_adds(ANDREW, WINDOW, WINDOW), dense_cost(ANDREW)
    config = Config()
    deep = locator(config)
    return page(
        "5. Which is faster, and why",
        f"""The convolutional one.  Neighbouring windows overlap in all but two rows or columns, and
        sliding convolves the overlap again for each of them.  A window costs {one:,} multiply-adds:
        {one - dense:,} in the convolution, which windows can share, and {dense:,} in the dense
        layers, which they cannot.  In one pass over a large image the convolution falls to
        {round(one / limit(ANDREW)) - dense:,} a window.  So sliding takes more multiply-adds by a
        factor of {listed} pixels, and of {limit(ANDREW):.4f} in the limit.  A network that does
        more before its dense layers gains more: that of the `digits` configuration a factor of
        {ratio(deep, config.canvas, 1):.1f} on {config.canvas} pixels and of {limit(deep, 1):.1f} in
        the limit.""",
        f"""Times differ by more than counts: small convolutions use a processor badly, every call
        costs a fixed time, and windows are copied out of the image.  The convolutional form pays in
        memory: at 1080 pixels and batch 5 the outputs of one hidden dense layer are
        {map_gb(1080, 5):.2f} GB, where windows in chunks take as much as one chooses.""",
    )


def six():
    """One convolution more."""
    features, strided = windows.parse("c5,p2,c3"), windows.parse("c5,p2,c3s2")
    kernel = windows.head_layer(features, WINDOW).kernel
    return page(
        "6. One more convolution",
        f"""With a 3 x 3 convolution after the pool both procedures
        {verdict(features, WINDOW, 28, 2)} at stride 2: a convolution of stride 1 leaves the product
        of the strides at {stride(features)}, and only the head shrinks, to {kernel} x {kernel}.
        Were the stride of that convolution 2, they would {verdict(strided, WINDOW, 28, 2)} at
        stride 2 and {verdict(strided, WINDOW, 28, 4)} at stride {stride(strided)}.""",
    )


def seven():
    """One pool more."""
    features = windows.parse("c5,p2,p2")
    dense, slid = counts(features, WINDOW, 28)
    return page(
        "7. One more max pool",
        f"""With a second pool of kernel 2 they {verdict(features, 16, 28, 2)} at stride 2.  Sliding
        has to step by 2 x 2 = {stride(features)} pixels: then they {verdict(features, 16, 28, 4)},
        for windows of 16 pixels.  At {WINDOW} pixels stride {stride(features)} is not enough: the
        second pool halves an odd number of features and drops a row, so that the network looks at
        {seen(features, WINDOW).window} of the {WINDOW} pixels, and a side of 28 has {dense} outputs
        in one procedure and {slid} in the other.""",
    )


def eight():
    """The formulas."""
    example = windows.parse("c5,p2,c5,p2")
    found, sample = seen(example, 28), windows.grid(chain(example, 28), 64, 64)
    return page(
        "8. How many windows, and which",
        """Let the layers, the head among them, have kernels k_1, k_2, ..., and let S_i be the
        product of the strides of the first i layers: with padding 0 and pools of kernel 2 that is
        2^(pools among them).  Then""",
        FORMULAS,
        f"""The floors of the single layers fold into the one of the count.  Both procedures
        coincide where the windows slid over are these.  For 5 x 5, pool, 5 x 5, pool and a head
        over windows of 28 pixels: w = {found.window}, S = {found.stride}, and 64 x 64 pixels have
        {sample.rows} x {sample.columns} windows.  `ops.windows.grid` is this formula, `output_size`
        the floors layer by layer; tests compare both with following the indices through random
        chains.""",
    )


def page(title, *paragraphs):
    """A heading and its paragraphs, filled; what is indented by four spaces stays as it is."""
    filled = [
        paragraph
        if paragraph.startswith("    ")
        else textwrap.fill(" ".join(paragraph.split()), 96)
        for paragraph in paragraphs
    ]
    return "\n\n".join((f"### {title}", *filled))


def chain(features, window):
    """Features and the head that a first dense layer becomes."""
    return (*features, windows.head_layer(features, window))


def seen(features, window):
    """Window, stride and offset of what the convolutional form looks at."""
    return windows.receptive_field(chain(features, window))


def stride(features):
    """Product of the strides of the layers."""
    return windows.receptive_field(features).stride


def counts(features, window, size):
    """Windows a side of both procedures, at the product of the strides."""
    sliding = (windows.conv(window, stride(features)),)
    return windows.output_size(chain(features, window), size), windows.output_size(sliding, size)


def verdict(features, window, size, step):
    """Whether both procedures coincide, as a verb."""
    return "differ" if windows.differences(features, window, size, step) else "coincide"


def ratio(net, size, channels=3):
    """How many times as many multiply-adds sliding takes on a square image."""
    sliding = multiply_adds(net.clone(form="sequential"), size, size, channels)
    return sliding / multiply_adds(net, size, size, channels)


def limit(net, channels=3):
    """What `ratio` tends to as the image grows."""
    return ratio(net, VAST, channels)


def dense_cost(net):
    """Multiply-adds of the dense layers for one window."""
    kernel = windows.head_layer(net.stages, net.window).kernel
    inputs = (kernel * kernel * net.widths[-1], *net.dense)
    return sum(a * b for a, b in zip(inputs, (*net.dense, net.outputs), strict=True))


def locator(config):
    """The network of a digits configuration, as far as multiply-adds go."""
    return SlidingNet(
        stages=windows.parse(config.stages),
        widths=config.widths,
        dense=config.dense,
        outputs=15,
        window=config.window,
        ink=True,
    )


def map_gb(size, batch):
    """Gigabytes of the maps of the first dense layer."""
    rows = windows.grid(ANDREW.chain(), size, size).rows
    return 4 * batch * rows * rows * ANDREW.dense[0] / 1e9
