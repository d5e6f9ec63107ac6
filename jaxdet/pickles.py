"""Files of trained weights as NumPy arrays by name: safetensors, and what torch.save writes.

A file of torch.save is a pickle beside raw storages, and a pickle can run any program.  Here it is
read without PyTorch, by an unpickler that builds dicts, tuples, numbers, strings and records of
arrays and has nothing else to call.  Both of its formats are known: the zip file that PyTorch
writes since 1.6, and the row of pickles from before.
"""

import io
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdet.errors import InputError

BFLOAT16 = np.dtype(jnp.bfloat16)  # read as float32, which holds all of its values
TORCH = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": BFLOAT16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
SAFETENSORS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": BFLOAT16,
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of the older format
WRAPPERS = ("state_dict", "model")  # under which training scripts file the arrays
WANTED = "wanted is a safetensors file, or one that torch.save(model.state_dict(), ...) wrote"
INSTALL = "reading safetensors wants a package: pip install jaxdet[weights]"


def read_arrays(path):
    """{name: array} of a file of weights; its kind is told by its first bytes.

    Arrays may share memory, be strided as in the file and be read-only; bfloat16 comes as float32.
    Of a dict {"state_dict": {...}} or {"model": {...}} the inner one is read; what is no array,
    such as the number of epochs, is left out.  InputError, in one line, when the file cannot be
    read, is of no known kind, is cut short or damaged, asks for anything but arrays, or holds none.
    """
    with as_input_error(path):
        content = Path(path).read_bytes()
        return _reader(content)(content)


@contextmanager
def as_input_error(path):
    """A context in which whatever fails is an InputError, in one line that names `path`.

    A damaged file may fail anywhere in pickle, zipfile, tarfile or NumPy.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:  # of the file, not of what is in it
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise InputError(f"{path}: is cut short or damaged ({reason}); fetch it again") from error


class RestrictedUnpickler(pickle.Unpickler):
    """Builds plain values and, of all that has a name, only what `known` has.

    A pickle can set attributes of whatever it is given: `known` makes functions anew each time, and
    all else that it gives is immutable or the pickle's own.
    """

    wanted = "only arrays and plain values are wanted"

    def known(self):
        """What stands for a global, by its whole name."""
        return {}

    def find_class(self, module, name):
        """What stands for a global; InputError for one that is not known."""
        whole, known = f"{module}.{name}", self.known()
        if whole not in known:
            raise InputError(f"asks for {whole!r}, which is no array and is not run; {self.wanted}")
        return known[whole]


def next_unpickler(stream, kind, **options):
    """An `Unpickler` of class `kind` of the next pickle of a stream, which is left behind its end.

    stream: a BytesIO.  InputError for a pickle that could get at a global in another way, or that
    wants more memory than its length explains.
    """
    start = stream.tell()
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name.startswith("EXT"):  # a global that may not come by find_class
            raise InputError(f"asks for a global by {opcode.name}; {kind.wanted}")
        if "PUT" in opcode.name and argument > stream.tell():  # a memo grows to its last place
            raise InputError("has a pickle that wants more memory than its length explains")
    return kind(io.BytesIO(stream.getbuffer()[start : stream.tell()]), **options)


def _reader(content):
    if content[4:9] == b"\0\0\0\0{":  # after the length of its header
        return _safetensors
    if content.startswith(b"PK\x03\x04"):
        return _zipped
    if content.startswith(b"\x80"):
        return _pickled
    raise InputError(f"begins with {content[:4].hex(' ') or 'nothing'}; {WANTED}")


def _safetensors(content):
    try:
        import safetensors
    except ImportError as error:
        raise InputError(INSTALL) from error
    found = dict(safetensors.deserialize(content))
    unknown = {each["dtype"] for each in found.values()} - set(SAFETENSORS)
    if unknown:
        raise InputError(f"holds arrays of {unknown.pop()}, which are not supported")
    return {
        name: _decoded(each["data"], SAFETENSORS[each["dtype"]]).reshape(each["shape"])
        for name, each in found.items()
    }


def _zipped(content):
    """The newer format: `NAME/data.pkl`, and each storage in `NAME/data/KEY`."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        entries = file.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > len(content):
            raise InputError(f"is a zip file with compressed entries; {WANTED}")
        names = file.namelist()
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise InputError(f"is a zip file without one data.pkl; {WANTED}")
        root = roots[0]
        if f"{root}byteorder" in names:
            _check_order(file.read(f"{root}byteorder") == b"little")
        tree, kinds = _unpickle(io.BytesIO(file.read(f"{root}data.pkl")))
        raw = {key: file.read(f"{root}data/{key}") for key in kinds}
    return _arrays(tree, {key: _decoded(raw[key], TORCH[kind]) for key, kind in kinds.items()})


def _pickled(content):
    """The older format: five pickles (the fourth has the arrays, the fifth keys), then storages."""
    stream = io.BytesIO(content)
    if _unpickle(stream)[0] != MAGIC:
        raise InputError(f"is a pickle that torch.save did not write; {WANTED}")
    version, system = _unpickle(stream)[0], _unpickle(stream)[0]
    if version != PROTOCOL:
        raise InputError(f"has version {version!r} of the format, known is {PROTOCOL}")
    _check_order(system["little_endian"])
    tree, kinds = _unpickle(stream)
    storages = {}
    for key in _unpickle(stream)[0]:
        (count,) = struct.unpack("<Q", stream.read(8))
        raw = stream.read(count * np.dtype(TORCH[kinds[key]]).itemsize)
        storages[key] = _decoded(raw, TORCH[kinds[key]])
        if len(storages[key]) != count:
            raise EOFError(f"{len(storages[key])} of {count} values in storage {key}")
    return _arrays(tree, storages)


def _check_order(little):
    if not little:
        raise InputError("holds big-endian numbers, which are not supported")


def _decoded(raw, dtype):
    values = np.frombuffer(raw, dtype) if len(raw) else np.empty(0, dtype)
    return values.astype(np.float32) if dtype == BFLOAT16 else values


class _Storage(NamedTuple):
    kind: str  # a key of TORCH
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int  # in elements, like the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _TensorUnpickler(RestrictedUnpickler):
    """Builds the two records above; `kinds` are those of the storages it met."""

    wanted = WANTED

    def __init__(self, stream):
        super().__init__(stream)
        self.kinds = {}

    def known(self):
        """What stands for the globals of PyTorch that are of arrays."""
        return {
            "collections.OrderedDict": OrderedDict,
            "torch.Size": tuple,
            "torch._utils._rebuild_tensor_v2": lambda *arguments: _Tensor(*arguments[:4]),
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        }

    def find_class(self, module, name):
        """The name of a kind of storage; what stands for another global."""
        if module not in ("torch", "torch.cuda") or not name.endswith("Storage"):
            return super().find_class(module, name)
        if name not in TORCH:
            raise InputError(f"holds a '{module}.{name}', which is not supported")
        return name

    def persistent_load(self, pid):
        """The record of a storage; torch.save files them under the pickle, by key."""
        _, kind, key, *_ = pid
        if self.kinds.setdefault(key, kind) != kind:
            raise InputError(f"holds storage {key!r} as both {self.kinds[key]!r} and {kind!r}")
        return _Storage(kind, key)


def _unpickle(stream):
    """(value, kinds of storages) of the next pickle of a stream."""
    records = next_unpickler(stream, _TensorUnpickler)
    return records.load(), records.kinds


def _arrays(tree, storages):
    for wrapper in WRAPPERS:
        if isinstance(tree, dict) and isinstance(tree.get(wrapper), dict):
            tree = tree[wrapper]
    if not isinstance(tree, dict):
        raise InputError(f"holds a {type(tree).__name__}, no arrays by name; {WANTED}")
    named = {name: each for name, each in tree.items() if isinstance(name, str)}
    found = {name: each for name, each in named.items() if isinstance(each, _Tensor)}
    if not found:
        raise InputError(f"holds no arrays by name, only {[*named][:5]}; {WANTED}")
    return {name: _view(each, storages, name) for name, each in found.items()}


def _view(tensor, storages, name):
    """The array that a record tells of; its last element must lie within the storage."""
    values = storages[tensor.storage.key]
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    if any(type(number) is not int or number < 0 for number in numbers):
        raise InputError(f"{name!r} has offset, shape and strides {numbers}")
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((length - 1) * step for length, step in steps)
    if 0 in tensor.shape:
        return np.empty(tensor.shape, values.dtype)
    if last >= len(values):
        raise InputError(f"{name!r} reaches element {last} of a storage of {len(values)}")
    size = values.itemsize
    strides = [step * size for step in tensor.strides]
    return np.ndarray(tensor.shape, values.dtype, values, tensor.offset * size, strides)
