"""State dicts on disk: safetensors files that store masked tensors compactly.

A tensor with many zeros is stored in the smallest of three forms. Its size and number of nonzeros decide the form:

- *dense*: an ordinary safetensors entry.
- *bitmask*: one bit per element, in memory order, the first in the lowest bit of the first byte; then the values.
- *indices*: the ascending positions of the nonzeros in Elias-Fano coding; then the values. First, the `low` lowest bits
  of every position (lowest bit first), padded to a byte. Then, for the higher bits of each position, their increase
  since the previous position in unary: as many 0 bits, then a 1. Then 0 bits up to the tensor's last position, padded
  to a byte. `low`, 0 to 5, gives the shortest code; of equal ones, the smallest.

A bitmask or indices entry has type U8 and the tensor's name. The metadata describe it: the key `amc_sparse` holds the
JSON object {"version": 1, "tensors": {name: [form, dtype, shape, nonzeros]}}. Values are little-endian in the tensor's
type. All values are restored exactly, but the sign of zero is lost: -0.0 becomes 0.0.

Sizes depend on counts only. So the largest size of a file has a closed form before any weight is known:
`file_overhead` plus the `bound` of every sparse tensor. Each stored byte represents at most 256 elements. So a damaged
or hostile file cannot demand much memory: at most 1 KiB of float32 per byte.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from amc.errors import RunError
from amc.run.records import check_regular

KEY = "amc_sparse"
VERSION = 1
BITMASK, INDICES = "bitmask", "indices"
SPARSE_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ELEMENTS_A_BYTE = 256  # follows from at most 5 low bits: 8 bits of 2**5 elements each

_NAMES = {dtype: name for name, dtype in SPARSE_TYPES.items()}
_LOWS = range(6)
_HEADER_NAMES = {**_NAMES, torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}
_LONGEST_NAME = "F8_E5M2FNUZ"  # longest name of a type in safetensors
_ALIGNMENT = 8  # of the header, bytes; its length is in the 8 bytes before it
_DIMENSIONS = 64  # most dimensions of a torch tensor

Bytes = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
Count = TypeVar("Count", int, Counts)


def pack(state: Mapping[str, Tensor], sparse: Iterable[str] = ()) -> bytes:
    """The bytes of a safetensors file of `state`. Tensors named in `sparse` are compact where that is smaller.

    Tensors may be on any device and may share memory. Only floating-point types of at least 16 bits can be compact.
    """
    stored: dict[str, Tensor] = {}
    entries: dict[str, tuple[str, str, list[int], int]] = {}
    chosen = set(sparse)
    for name, tensor in state.items():
        value = tensor.detach().cpu().contiguous()
        form, kept = _form_of(value) if name in chosen and value.dtype in _NAMES else ("dense", 0)
        if form == "dense":
            stored[name] = value.clone()  # safetensors refuses tensors that share memory
        else:
            stored[name] = torch.from_numpy(_encode(value, form))
            entries[name] = (form, _NAMES[value.dtype], list(value.shape), kept)
    metadata = {KEY: _metadata(entries)} if entries else None
    return safetensors.torch.save(stored, metadata)


def pack_smallest(state: Mapping[str, Tensor], sparse: Collection[str]) -> bytes:
    """The smaller of both files, with compact tensors and without: describing few zeros costs more than it saves."""
    return min(pack(state, sparse), pack(state), key=len) if sparse else pack(state)


def unpack(data: bytes) -> dict[str, Tensor]:
    """The state dict in a safetensors file, packed or plain. Raises RunError if it is damaged."""
    try:
        stored = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except Exception as error:  # the readers raise anything on a damaged file
        raise RunError(f"not a readable safetensors file ({_line(error)}); it may be damaged") from None
    return _expand(stored, header.get("__metadata__") or {})


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a safetensors file, packed or plain. Raises RunError if it is missing or damaged."""
    check_regular(Path(path))  # reading from a pipe would never end
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # the readers raise anything on a damaged file
        raise RunError(f"weights '{path}' cannot be read ({_line(error)}); the file may be damaged") from None
    try:
        return _expand(stored, metadata)
    except RunError as error:
        raise RunError(f"weights '{path}' cannot be read: {error}") from None


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors' names, types, shapes and values, in hexadecimal; their order does not count."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        sha256.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def bound(numel: int, kept: npt.ArrayLike, itemsize: int) -> Counts:
    """Bytes of a tensor with `numel` elements of `itemsize` bytes and `kept` nonzeros: [the shape of `kept`].

    Exact, without the header. It does not decrease as `kept` grows, so it also bounds tensors with fewer nonzeros.
    """
    counts = np.asarray(kept, dtype=np.int64)
    indices = np.minimum(_bitmask_bytes(numel), np.min([_index_bytes(numel, counts, low) for low in _LOWS], axis=0))
    return np.asarray(np.minimum(numel * itemsize, indices + counts * itemsize), dtype=np.int64)


def file_overhead(state: Mapping[str, Tensor], sparse: Iterable[str] = ()) -> int:
    """Bytes of a file without its sparse tensors: the longest possible header, and the dense tensors.

    Reads only shapes and types of `state`; its tensors may be on the meta device.
    """
    chosen = {name for name in sparse if name in state and state[name].dtype in _NAMES}
    dense = sum(value.numel() * value.element_size() for name, value in state.items() if name not in chosen)
    return _longest_header(state, chosen) + dense


def file_bound(state: Mapping[str, Tensor], kept: Mapping[str, int]) -> int:
    """The largest size of `pack(state, kept)`, bytes, if each tensor named in `kept` has at most that many nonzeros.

    With an empty `kept` this is the size of a plain safetensors file. It also bounds networks with fewer channels.
    """
    compact = {name: count for name, count in kept.items() if state[name].dtype in _NAMES}
    sizes = (bound(state[name].numel(), n, state[name].element_size()) for name, n in compact.items())
    return file_overhead(state, compact) + sum(int(size) for size in sizes)


def _bitmask_bytes(numel: int) -> int:
    return -(-numel // 8)


def _index_bytes(numel: int, kept: Count, low: int) -> Count:
    """Bytes of `kept` positions below `numel`, coded with `low` low bits each."""
    high = kept + (max(numel, 1) - 1 >> low)
    return -(-kept * low // 8) - (-high // 8)


def _best_low(numel: int, kept: int) -> int:
    return min(_LOWS, key=lambda low: _index_bytes(numel, kept, low))


def _compact_bytes(form: str, numel: int, kept: int, itemsize: int) -> int:
    index = _bitmask_bytes(numel) if form == BITMASK else _index_bytes(numel, kept, _best_low(numel, kept))
    return index + kept * itemsize


def _form_of(value: Tensor) -> tuple[str, int]:
    """The smallest form, and the number of nonzeros."""
    numel, kept = value.numel(), int(torch.count_nonzero(value))
    sizes = {form: _compact_bytes(form, numel, kept, value.element_size()) for form in (BITMASK, INDICES)}
    form = min(sizes, key=lambda name: sizes[name])
    return (form if sizes[form] < numel * value.element_size() else "dense"), kept


def _encode(value: Tensor, form: str) -> Bytes:
    flat = value.flatten()
    nonzero = flat != 0
    mask = nonzero.numpy()
    index = np.packbits(mask, bitorder="little") if form == BITMASK else _coded(np.flatnonzero(mask), mask.size)
    return np.concatenate([index, flat[nonzero].view(torch.uint8).numpy()])


def _coded(positions: Counts, numel: int) -> Bytes:
    low = _best_low(numel, positions.size)
    lows = ((positions[:, None] >> np.arange(low)) & 1).astype(np.uint8)
    high = np.zeros(positions.size + (numel - 1 >> low), dtype=np.uint8)
    high[(positions >> low) + np.arange(positions.size)] = 1
    return np.concatenate([np.packbits(lows, bitorder="little"), np.packbits(high, bitorder="little")])


def _decoded(code: Bytes, numel: int, kept: int) -> Counts:
    """The positions that `_coded` encoded. Raises RunError unless they are `kept` ascending numbers below `numel`."""
    low = _best_low(numel, kept)
    split = -(-kept * low // 8)
    lows = _bits(code[:split], kept * low).reshape(kept, low)
    ones = np.flatnonzero(_bits(code[split:], kept + (numel - 1 >> low)))
    if ones.size != kept:
        raise RunError(f"it holds {ones.size} positions instead of {kept}")
    positions = (ones - np.arange(kept) << low) + lows @ (1 << np.arange(low))
    if kept and (positions[-1] >= numel or (np.diff(positions) <= 0).any()):
        raise RunError("its positions are out of order or out of range")
    return np.asarray(positions, dtype=np.int64)


def _bits(code: Bytes, count: int) -> Bytes:
    """The first `count` bits. Raises RunError if the padding is not zero."""
    bits = np.unpackbits(code, bitorder="little")
    if bits[count:].any():
        raise RunError("its padding is not zero")
    return bits[:count]


def _expand(stored: dict[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """Restore the compact entries; other entries stay unchanged."""
    if KEY not in metadata:
        return stored
    try:
        description = json.loads(metadata[KEY])
        version, entries = description["version"], description["tensors"].items()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise RunError(f"its metadata '{KEY}' are damaged") from None
    if version != VERSION:
        raise RunError(f"its sparse tensors are of version {version}, this program reads {VERSION}; update it")
    for name, entry in entries:
        try:
            stored[name] = _restored(stored.get(name), entry)
        except RunError as error:
            raise RunError(f"sparse tensor '{name}' is damaged: {error}") from None
    return stored


def _restored(code: Tensor | None, entry: Any) -> Tensor:
    """The tensor of `entry`, [form, dtype, shape, nonzeros], and its bytes. Both are checked."""
    if code is None or code.dtype != torch.uint8 or code.ndim != 1:
        raise RunError("its bytes are missing")
    if not isinstance(entry, list) or len(entry) != 4 or entry[0] not in (BITMASK, INDICES):
        raise RunError("its description is not [form, dtype, shape, nonzeros]")
    form, dtype, shape, kept = entry
    if not isinstance(dtype, str) or dtype not in SPARSE_TYPES:
        raise RunError(f"its type is unknown: {str(dtype)[:20]}")
    if not isinstance(shape, list) or len(shape) > _DIMENSIONS or not all(_is_count(size) for size in (*shape, kept)):
        raise RunError("its shape or number of nonzeros is not a count")
    numel, item = math.prod(shape), SPARSE_TYPES[dtype]
    # Check before any allocation: a byte represents at most `ELEMENTS_A_BYTE` elements.
    if not 0 < numel <= ELEMENTS_A_BYTE * (code.numel() + 1) or kept > numel:
        raise RunError(f"{code.numel()} bytes cannot hold {kept} nonzeros of shape {shape}")
    length = _compact_bytes(form, numel, kept, item.itemsize)
    if code.numel() != length:
        raise RunError(f"it has {code.numel()} bytes instead of {length}")
    index, values = code[: length - kept * item.itemsize], code[length - kept * item.itemsize :]
    bits = index.numpy()
    positions = np.flatnonzero(_bits(bits, numel)) if form == BITMASK else _decoded(bits, numel, kept)
    if positions.size != kept:
        raise RunError(f"it holds {positions.size} positions instead of {kept}")
    dense = torch.zeros(numel, dtype=item)
    dense.view(torch.uint8).reshape(numel, -1)[torch.from_numpy(positions)] = values.reshape(kept, item.itemsize)
    return dense.reshape(shape)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _metadata(entries: Mapping[str, Sequence[Any]]) -> str:
    return json.dumps({"version": VERSION, "tensors": entries}, separators=(",", ":"), ensure_ascii=False)


def _longest_header(state: Mapping[str, Tensor], sparse: set[str]) -> int:
    """Bytes before the data, if every number in the header has its largest length."""
    largest = 10 ** len(str(sum(value.numel() * value.element_size() for value in state.values()))) - 1
    header: dict[str, Any] = {}
    for name, value in state.items():
        plain = _header_entry(_HEADER_NAMES.get(value.dtype, _LONGEST_NAME), list(value.shape), largest)
        compact = _header_entry("U8", [value.numel() * value.element_size()], largest)
        header[name] = max(plain, compact, key=_json_bytes) if name in sparse else plain
    if sparse:
        entries = {
            name: [INDICES, _NAMES[v.dtype], list(v.shape), v.numel()] for name, v in state.items() if name in sparse
        }
        header["__metadata__"] = {KEY: _metadata(entries)}
    return 8 + -(-_json_bytes(header) // _ALIGNMENT) * _ALIGNMENT


def _header_entry(dtype: str, shape: list[int], offset: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset]}


def _json_bytes(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
