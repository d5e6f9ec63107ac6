import io
import os
import struct
import sys
import zipfile

import numpy as np
import pytest

from jaxdet import pickles
from jaxdet.errors import InputError


class Call(tuple):
    """A call of a pickle: (module, name, *arguments)."""


class Stored(tuple):
    """A storage, which torch.save keeps outside the pickle."""


class Kind(str):
    """The name of a class of PyTorch."""


def opcodes(value):
    """The opcodes of a value, globals included, without PyTorch."""
    if isinstance(value, Call):
        module, name, *arguments = value
        return f"c{module}\n{name}\n".encode() + opcodes(tuple(arguments)) + b"R"
    if isinstance(value, Stored):
        return opcodes(tuple(value)) + b"Q"
    if isinstance(value, Kind):
        return f"ctorch\n{value}\n".encode()
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value)) + value.encode()
    if isinstance(value, tuple):
        return b"(" + b"".join(map(opcodes, value)) + b"t"
    if isinstance(value, list):
        return b"(" + b"".join(map(opcodes, value)) + b"l"
    if isinstance(value, dict):
        return b"(" + b"".join(opcodes(x) for pair in value.items() for x in pair) + b"d"
    return f"I{int(value)}\n".encode()


def pickled(value):
    """A pickled value; bytes are returned unchanged."""
    return value if isinstance(value, bytes) else b"\x80\x02" + opcodes(value) + b"."


def tensor(shape=(2, 3), strides=(3, 1), offset=0, key="0", kind="FloatStorage"):
    storage = Stored(("storage", Kind(kind), key, "cpu", 6))
    call = ("torch._utils", "_rebuild_tensor_v2", storage, offset, shape, strides, False, {})
    return Call(call)


STORAGES = {"0": np.arange(6, dtype=np.float32).tobytes()}
PLAIN = {"a": tensor(), "epoch": 3}


def newer_file(tree=PLAIN, storages=STORAGES, packing=zipfile.ZIP_STORED, **entries):
    """A file as torch.save writes it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packing) as file:
        file.writestr("net/data.pkl", pickled(tree))
        for name, content in entries.items():
            file.writestr(f"net/{name}", content)
        for key, content in storages.items():
            file.writestr(f"net/data/{key}", content)
    return stream.getvalue()


def older_file(tree=PLAIN, storages=STORAGES, version=pickles.PROTOCOL, little=1, size=4):
    """A file as torch.save wrote it before 1.6."""
    start = b"\x80\x02\x8a\x0a" + pickles.MAGIC.to_bytes(10, "little") + b"."
    parts = map(pickled, (version, {"little_endian": little}, tree, list(storages)))
    raw = (struct.pack("<q", len(each) // size) + each for each in storages.values())
    return start + b"".join((*parts, *raw))


BOTH = pytest.mark.parametrize("form", [newer_file, older_file])


@pytest.fixture
def given(tmp_path):
    """A function that reads the arrays of a file with this content."""

    def read(content):
        path = tmp_path / "net.pth"
        path.write_bytes(content)
        return pickles.read_arrays(path)

    return read


def refused(read, content, match):
    with pytest.raises(InputError, match=match) as raised:
        read(content)
    assert "net.pth: " in str(raised.value) and "\n" not in str(raised.value)


@BOTH
def test_only_arrays_are_read(given, form):
    arrays = given(form())
    assert list(arrays) == ["a"] and arrays["a"].dtype == np.float32
    np.testing.assert_array_equal(arrays["a"], [[0, 1, 2], [3, 4, 5]])


@BOTH
@pytest.mark.parametrize("wrapper", pickles.WRAPPERS)
def test_the_state_dict_of_a_checkpoint_is_unwrapped(given, form, wrapper):
    assert list(given(form({"epoch": 3, wrapper: PLAIN}))) == ["a"]


@BOTH
def test_strides_and_offsets_are_those_of_the_file(given, form):
    tree = {
        "transposed": tensor((3, 2), (1, 3)),
        "last": tensor((2,), (1,), 4),
        "number": tensor((), (), 5),
        "repeated": tensor((2, 2), (0, 1)),
        "none": tensor((0, 7), (7, 1), 6),
    }
    arrays = given(form(tree))
    np.testing.assert_array_equal(arrays["transposed"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(arrays["last"], [4, 5])
    assert arrays["number"] == 5 and arrays["number"].shape == ()
    np.testing.assert_array_equal(arrays["repeated"], [[0, 1], [0, 1]])
    assert arrays["none"].shape == (0, 7)
    assert np.shares_memory(arrays["transposed"], arrays["last"])


@BOTH
@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"offset": 1}, "'a': last element must be below 6, the size of its storage, got 6"),
        ({"shape": (3, 3)}, "must be below 6, the size of its storage, got 8"),
        ({"strides": (2**70, 1)}, "last element must be below"),
        ({"offset": -1}, "'a': offset, shape and strides must be integers of at least 0, got"),
        ({"strides": (-3, 1)}, "'a': offset, shape and strides must be"),
        ({"shape": (2, -3)}, "'a': offset, shape and strides must be"),
        ({"shape": ("2", 3)}, "'a': offset, shape and strides must be"),
        ({"shape": (6,)}, "damaged"),
        ({"shape": 6}, "damaged"),
        ({"shape": (0, 2**62, 2**62), "strides": (1, 1, 1)}, "damaged"),
        ({"shape": (1,) * 99, "strides": (1,) * 99}, "damaged"),
        ({"key": "1"}, "damaged"),
        ({"kind": "ComplexFloatStorage"}, "must be one of .*, got 'torch.ComplexFloatStorage'"),
    ],
)
def test_a_tensor_that_its_storage_cannot_hold_is_refused(given, form, changed, match):
    refused(given, form({"a": tensor(**changed)}), match)


@BOTH
def test_a_storage_has_one_kind(given, form):
    refused(given, form({"a": tensor(), "b": tensor(kind="IntStorage")}), "storage '0' as both")


@BOTH
@pytest.mark.parametrize("tree", [[tensor()], {0: tensor()}, {"epoch": 3}, {}, 7])
def test_a_file_without_arrays_by_name_is_refused(given, form, tree):
    storages = STORAGES if b"Storage" in pickled(tree) else {}
    refused(given, form(tree, storages), "no arrays by name")


@BOTH
def test_a_pickle_that_runs_code_is_refused(given, form, tmp_path):
    proof = tmp_path / "proof"
    for module in ("os", os.name):
        call = Call((module, "system", f"touch {proof}"))
        refused(given, form({"a": tensor(), "b": call}), f"refers to '{module}.system'")
    assert not proof.exists()


@BOTH
@pytest.mark.parametrize(
    "code",
    [
        b"cbuiltins\neval\n",
        b"cbuiltins\ngetattr\n",
        b"cnumpy\nndarray\n",
        b"ctorch\nload\n",
        b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n",
        b"\x8c\x02os\x8c\x06system\x93",  # a global by strings on the stack
        b"(X\x02\x00\x00\x00lsios\nsystem\n",  # an instance, the oldest way to call
        b"\x82\x01",  # a global by its number in a registry
    ],
)
def test_no_opcode_reaches_another_global(given, form, code):
    refused(given, form(b"\x80\x04" + code + b"."), "refers to")


@BOTH
def test_setting_attributes_has_no_effect(given, form):
    function = b"ctorch._utils\n_rebuild_parameter\n"
    evil = b"N}" + opcodes("__defaults__") + opcodes((tensor(),)) + b"s\x86b"
    given(form(b"\x80\x02}" + opcodes("a") + opcodes(PLAIN["a"]) + b"s" + function + evil + b"0."))
    read = pickles._TensorUnpickler(io.BytesIO()).find_class("torch._utils", "_rebuild_parameter")
    assert read.__defaults__ is None
    for name in ("collections\nOrderedDict", "torch\nFloatStorage", "torch\nSize"):
        refused(given, form(b"\x80\x02c" + name.encode() + b"\n" + evil + b"."), "damaged")


NESTED = b"(t" + b"2\x86" * 60  # a tuple of twice a tuple of twice ...: 2^60 to hash


@BOTH
@pytest.mark.parametrize(
    "code",
    [
        b"}" + NESTED + b"Ns",
        b"}(" + NESTED + b"Nu",
        b"(" + NESTED + b"Nd",
        b"ccollections\nOrderedDict\n(" + NESTED + b"Nt\x85\x85R",
        b"\x8f(" + NESTED + b"\x90",
        b"(" + NESTED + b"\x91",
        b"ccollections\nOrderedDict\n)R(" + NESTED + b"Nu",
    ],
    ids=["setitem", "setitems", "dict", "reduce", "additems", "frozenset", "ordered"],
)
def test_containers_are_no_keys(given, form, code):
    refused(given, form(b"\x80\x04" + code + b"."), "has a tuple as a key")


@pytest.mark.parametrize("device", [True, False])
def test_only_regular_files_are_read(tmp_path, device):
    path = tmp_path / "net.pth"
    path.symlink_to("/dev/zero") if device else os.mkfifo(path)
    with pytest.raises(InputError, match=r"net\.pth: is not a regular file"):
        pickles.read_arrays(path)


@BOTH
def test_a_file_cannot_allocate_excessive_memory(given, form):
    far = b"\x80\x02}r" + struct.pack("<I", 2**31) + b"."
    refused(given, form(far), "is damaged: its pickle stores an object at index")
    refused(given, form(b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"."), "damaged")


@BOTH
@pytest.mark.parametrize("tree", [PLAIN, {}])
def test_a_file_cut_short_anywhere_is_refused(given, form, tree):
    content = form(tree, STORAGES if tree else {})
    for length in range(len(content)):
        refused(given, content[:length], "cut short or damaged|begins with")


@BOTH
def test_a_damaged_file_gives_arrays_or_an_input_error(given, form):
    content, draw = form(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[draw.integers(len(content))] = draw.integers(256)
        try:
            assert all(array.nbytes <= 24 for array in given(bytes(damaged)).values())
        except InputError as error:
            assert "\n" not in str(error)


def test_other_files_are_refused(given, tmp_path):
    for content, match in [
        (b"", "begins with nothing; must be"),
        (b"\x89PNG\r\n", "begins with 89 50 4e 47"),
        (pickled({"a": 1}), "pickle that torch.save did not write"),
        (older_file(version=1002), "must have format version 1001, got 1002"),
        (older_file(little=0), "big-endian"),
        (newer_file(byteorder="big"), "big-endian"),
        (newer_file(packing=zipfile.ZIP_DEFLATED), "compressed entries"),
        (
            newer_file().replace(b"net/data.pkl", b"net/meta.pkl"),
            "must have one data.pkl in the zip file, got 0",
        ),
        (newer_file(**{"more/data.pkl": "."}), "must have one data.pkl in the zip file, got 2"),
    ]:
        refused(given, content, match)
    for path, match in [(tmp_path, "Is a directory"), (tmp_path / "none", "No such file")]:
        with pytest.raises(InputError, match=f"^{path}: cannot be read: {match}"):
            pickles.read_arrays(path)


def test_entries_of_a_zip_file_that_share_their_bytes_are_refused(given):
    stream = io.BytesIO(newer_file(storages={"0": bytes(1000)}))
    with zipfile.ZipFile(stream, "a") as file:
        file.filelist += [file.getinfo("net/data/0")] * 99
        file._didModify = True
    refused(given, stream.getvalue(), "compressed entries")


def plain(array):
    """A PyTorch tensor in NumPy, bfloat16 as float32."""
    array = array.detach()
    return (array.float() if str(array.dtype) == "torch.bfloat16" else array).numpy()


def state(torch):
    """A state dict of every type, with views and parameters."""
    floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    others = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    arrays = {str(kind)[6:]: torch.arange(12).reshape(3, 4).to(kind) for kind in floats + others}
    arrays["parameter"] = torch.nn.Parameter(arrays["float32"].T[1:])
    arrays["half"] = torch.nn.Parameter(arrays["bfloat16"][1])
    arrays["image"] = torch.rand(1, 2, 3, 4).to(memory_format=torch.channels_last)
    arrays["empty"] = torch.zeros(0, 2)
    arrays["number"] = torch.tensor(7)
    return arrays


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_equal_those_that_torch_saved(given, new, protocol):
    torch = pytest.importorskip("torch")
    expected = {**state(torch), **torch.nn.BatchNorm2d(3).state_dict()}
    stream = io.BytesIO()
    options = {"_use_new_zipfile_serialization": new, "pickle_protocol": protocol}
    torch.save({"state_dict": expected, "epoch": 2, "rate": 0.5}, stream, **options)
    arrays = given(stream.getvalue())
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, plain(expected[name]), strict=True)
    for length in np.linspace(0, len(stream.getvalue()) - 1, 50, dtype=int):
        refused(given, stream.getvalue()[:length], "cut short or damaged|begins with")


def test_a_state_dict_with_its_metadata(given):
    torch = pytest.importorskip("torch")
    net, stream = torch.nn.Conv2d(2, 3, 5), io.BytesIO()
    torch.save(net.state_dict(), stream)
    arrays = given(stream.getvalue())
    np.testing.assert_array_equal(arrays["weight"], plain(net.weight), strict=True)


def test_a_pickled_torch_module_is_refused(given):
    torch = pytest.importorskip("torch")
    stream = io.BytesIO()
    torch.save(torch.nn.ReLU(), stream)
    refused(given, stream.getvalue(), "refers to 'torch.nn.modules.activation.ReLU'")


def test_safetensors(given):
    pytest.importorskip("safetensors")
    from safetensors.numpy import save

    draw = np.random.default_rng(0)
    expected = {
        "a": draw.normal(size=(3, 4)).astype(np.float32),
        "b": np.array(7),
        "c.d": draw.normal(size=2) > 0,
    }
    content = save(expected)
    arrays = given(content)
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name], strict=True)
    for length in range(len(content)):
        refused(given, content[:length], "cut short or damaged|begins with")


def test_safetensors_of_bfloat16_and_of_an_unsupported_type(given):
    pytest.importorskip("safetensors")
    header = b'{"a":{"dtype":"%s","shape":[2],"data_offsets":[0,%d]}}'
    content = header % (b"BF16", 4)
    arrays = given(struct.pack("<Q", len(content)) + content + b"\x80\x3f\x40\xc0")
    np.testing.assert_array_equal(arrays["a"], np.float32([1, -3]), strict=True)
    content = header % (b"U64", 16)
    refused(given, struct.pack("<Q", len(content)) + content + bytes(16), "got U64")


def test_without_safetensors_the_error_names_the_remedy(given, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    refused(given, struct.pack("<Q", 2) + b"{}", r"pip install jaxdet\[weights\]")
