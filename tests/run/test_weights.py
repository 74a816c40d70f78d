"""Sparse storage: exact both ways, as small as the closed form says, and wary of what it is given to read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from amc.errors import ModelError, RunError
from amc.run.weights import ELEMENTS_A_BYTE, KEY, bound, file_bound, file_overhead, pack, read_state, unpack
from amc.zoo import create_model, load_weights

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def sparse_tensor(shape: tuple[int, ...], density: float, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(shape, generator=generator) + 0.5
    return (values * (torch.rand(shape, generator=generator) < density)).to(dtype)


@st.composite
def states(draw: st.DrawFn) -> dict[str, Tensor]:
    names = draw(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=4, unique=True))
    state = {}
    for name in names:
        shape = tuple(draw(st.lists(st.integers(0, 40), max_size=3)))
        density = draw(st.sampled_from([0.0, 0.002, 0.02, 0.1, 0.3, 0.6, 0.98, 1.0]))
        dtype = draw(st.sampled_from([*TYPES, torch.int64, torch.uint8, torch.bool]))
        state[name] = sparse_tensor(shape, density, dtype, draw(st.integers(0, 9)))
    return {name: value for name, value in state.items() if name != "__metadata__"}


@settings(max_examples=200)
@given(states(), st.data())
def test_everything_returns_exactly_and_no_file_exceeds_its_bound(
    state: dict[str, Tensor], data: st.DataObject
) -> None:
    sparse = [name for name in state if data.draw(st.booleans())]
    packed = pack(state, sparse)
    back = unpack(packed)
    assert set(back) == set(state)
    for name, value in state.items():
        assert back[name].dtype == value.dtype
        assert back[name].shape == value.shape
        assert torch.equal(back[name], value)
    kept = {name: int(torch.count_nonzero(state[name])) for name in sparse}
    assert len(packed) <= file_bound(state, kept)
    assert len(packed) <= file_bound(
        state, {name: data.draw(st.integers(n, state[name].numel())) for name, n in kept.items()}
    )


@given(st.integers(1, 5000), st.sampled_from([2, 4, 8]), st.floats(0, 1), st.integers(0, 99))
def test_the_bound_is_the_exact_size_of_an_entry(numel: int, itemsize: int, density: float, seed: int) -> None:
    dtype = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[itemsize]
    value = sparse_tensor((numel,), density, dtype, seed)
    packed = pack({"w": value}, ["w"])
    data = len(packed) - 8 - int.from_bytes(packed[:8], "little")
    assert data == int(bound(numel, int(torch.count_nonzero(value)), itemsize))


@pytest.mark.parametrize("numel", [1, 7, 64, 1000, 36864])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_the_bound_never_falls_and_never_exceeds_dense(numel: int, itemsize: int) -> None:
    sizes = bound(numel, np.arange(numel + 1), itemsize)
    assert sizes.shape == (numel + 1,)
    assert (np.diff(sizes) >= 0).all()
    assert sizes[-1] == numel * itemsize
    assert (sizes <= -(-numel // 8) + itemsize * np.arange(numel + 1)).all()  # the bitmask is always on offer


def test_sizes_by_hand() -> None:
    """1,024 elements. Half kept: 128 bytes of mask. 1% (10): 5 low bits, 50 bits; 10 ones and 31 zeros, 41 bits."""
    assert int(bound(1024, 512, 4)) == 128 + 512 * 4
    assert int(bound(1024, 10, 4)) == 7 + 6 + 10 * 4
    assert int(bound(1024, 1024, 4)) == 4096
    assert bound(1024, [[10, 512]], 2).tolist() == [[33, 1152]]


def test_delta_bytes_would_take_more() -> None:
    """A byte a gap, which gaps over 255 make longer still: never fewer bytes than the positions take here."""
    for density in (0.2, 0.1, 0.05, 0.02):
        value = sparse_tensor((64, 64, 3, 3), density)
        kept = int(torch.count_nonzero(value))
        assert int(bound(value.numel(), kept, 4)) - 4 * kept < kept


@pytest.mark.parametrize("density", [0.5, 0.2, 0.1])
def test_a_networks_file_is_within_one_percent_of_the_closed_form(density: float) -> None:
    state = masked_state(density)
    weights = [name for name, value in state.items() if value.ndim > 1]
    packed = pack(state, weights)
    said = file_bound(state, {name: int(torch.count_nonzero(state[name])) for name in weights})
    assert len(packed) <= said <= 1.01 * len(packed)
    assert len(packed) < (density + 0.06) * len(pack(state))


def masked_state(density: float) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = dict(create_model("resnet20").state_dict())
    for name, value in state.items():
        if value.ndim > 1:
            state[name] = sparse_tensor(tuple(value.shape), density)
    return state


def test_plain_files_have_a_closed_form_too() -> None:
    state = create_model("resnet20").state_dict()
    plain = safetensors.torch.save(dict(state))
    assert pack(state) == plain
    assert len(plain) <= file_bound(state, {}) <= 1.001 * len(plain)
    meta = {name: value.to("meta") for name, value in state.items()}
    assert file_overhead(meta) == file_bound(state, {})


def test_an_all_zero_and_a_dense_tensor() -> None:
    state = {
        "zero": torch.zeros(64, 64),
        "full": torch.ones(64, 64),
        "scalar": torch.tensor(0.0),
        "none": torch.ones(0, 3),
    }
    back = unpack(pack(state, state))
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_special_values_return_and_minus_zero_is_a_zero() -> None:
    value = torch.zeros(64)
    value[[3, 5, 9, 60]] = torch.tensor([torch.nan, torch.inf, 1e-45, -0.0])
    back = unpack(pack({"w": value}, ["w"]))["w"]
    assert torch.isnan(back[3])
    assert back[5] == torch.inf
    assert back[9] == value[9] != 0
    assert not torch.signbit(back[60])


def test_views_shared_memory_and_names_that_are_not_there() -> None:
    base = sparse_tensor((8, 16), 0.2)
    state = {"a": base, "b": base.T, "c": base[::2], "d": nn.Parameter(base)}
    back = unpack(pack(state, ["a", "b", "c", "d", "elsewhere"]))
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_the_same_state_gives_the_same_bytes() -> None:
    state = masked_state(0.2)
    assert pack(state, list(state)) == pack(state, reversed(list(state)))


def test_read_state_and_load_weights_take_both_forms(tmp_path: Path) -> None:
    state = masked_state(0.2)
    for name, data in {"plain": pack(state), "packed": pack(state, state)}.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        assert all(torch.equal(value, state[key]) for key, value in read_state(path).items())
        model = create_model("resnet20")
        load_weights(model, path)
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_load_weights_refuses_a_damaged_sparse_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(tampered([entry("bitmask", [64], 999)]))
    with pytest.raises(ModelError, match=r"w\.safetensors' cannot be read: sparse tensor 'w0' is damaged"):
        load_weights(nn.Linear(3, 4), path)
    with pytest.raises(RunError, match=r"missing\.safetensors' cannot be read \(No such file"):
        read_state(tmp_path / "missing.safetensors")
    with pytest.raises(RunError, match="is not a regular file"):
        read_state(tmp_path)


# Damaged and hostile files ----------------------------------------------------------------------------------------

MASK = b"\x03" + bytes(7) + np.array([1, 2], dtype="<f4").tobytes()  # 64 elements, the first two are 1 and 2


def entry(form: object, shape: object, kept: object, dtype: object = "F32") -> list[object]:
    return [form, dtype, shape, kept]


def tampered(entries: list[object], code: bytes = MASK, metadata: str | None = None) -> bytes:
    text = metadata or json.dumps({"version": 1, "tensors": {f"w{i}": value for i, value in enumerate(entries)}})
    return safetensors.torch.save({"w0": torch.frombuffer(bytearray(code), dtype=torch.uint8)}, {KEY: text})


def test_the_hand_written_file_is_read() -> None:
    back = unpack(tampered([entry("bitmask", [8, 8], 2)]))["w0"]
    assert back.shape == (8, 8)
    assert back.flatten()[:3].tolist() == [1, 2, 0]


def test_positions_are_laid_out_as_described() -> None:
    """256 elements, 3, 35 and 200 kept: 5 low bits each (3, 3, 8); then rests 0, 1 and 6 as 1, 01, 000001 and 0."""
    value = torch.zeros(256)
    value[[3, 35, 200]] = torch.tensor([1.0, 2.0, 3.0])
    low = 3 | 3 << 5 | 8 << 10
    high = 1 << 0 | 1 << 2 | 1 << 8
    code = low.to_bytes(2, "little") + high.to_bytes(2, "little") + np.array([1, 2, 3], dtype="<f4").tobytes()
    stored = safetensors.torch.load(pack({"w": value}, ["w"]))
    assert bytes(stored["w"].numpy()) == code
    assert torch.equal(unpack(tampered([entry("indices", [256], 3)], code))["w0"], value)


@pytest.mark.parametrize(
    ("bad", "code", "says"),
    [
        (entry("bitmask", [64], 3), MASK, "16 bytes instead of 20"),
        (entry("bitmask", [64], 2), MASK[:-1], "15 bytes instead of 16"),
        (entry("bitmask", [64], 2), b"\x07" + MASK[1:], "holds 3 positions instead of 2"),
        (entry("bitmask", [60], 2), MASK[:7] + b"\x80" + MASK[8:], "padding is not zero"),
        (entry("bitmask", [64], 65), MASK, "cannot hold 65 nonzeros"),
        (entry("bitmask", [10**6, 10**6], 2), MASK, "16 bytes cannot hold 2 nonzeros"),
        (entry("indices", [10**12], 1), MASK, "cannot hold"),
        (entry("indices", [0, 2**62], 0), MASK, "no count"),
        (entry("indices", [0], 0), MASK, "cannot hold"),
        (entry("bitmask", [64.0], 2), MASK, "no count"),
        (entry("bitmask", [True, 64], 2), MASK, "no count"),
        (entry("bitmask", [-64, -1], 2), MASK, "no count"),
        (entry("bitmask", 64, 2), MASK, "no count"),
        (entry("bitmask", [1] * 65 + [64], 2), MASK, "no count"),
        (entry("bitmask", [64], None), MASK, "no count"),
        (entry("bitmask", [64], 2, "I64"), MASK, "type is unknown"),
        (entry("bitmask", [64], 2, ["F32"]), MASK, "type is unknown"),
        (entry("zip", [64], 2), MASK, "description is not"),
        (entry(["bitmask"], [64], 2), MASK, "description is not"),
        (["bitmask"], MASK, "description is not"),
        ({"form": "bitmask"}, MASK, "description is not"),
        (entry("indices", [256], 3), b"\x63\x23\x05\x03" + bytes(12), "holds 4 positions instead of 3"),
        (entry("indices", [256], 3), b"\x63\xa0\x05\x01" + bytes(12), "padding is not zero"),
        (entry("indices", [256], 3), b"\x63\x20\x07\x00" + bytes(12), "out of order"),
        (entry("indices", [250], 3), b"\x63\x7c\x05\x02" + bytes(12), "out of range"),
    ],
)
def test_damaged_entries_are_refused(bad: object, code: bytes, says: str) -> None:
    with pytest.raises(RunError, match=says):
        unpack(tampered([bad], code))


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ("{", "metadata 'amc_sparse' are damaged"),
        ("[]", "damaged"),
        ("7", "damaged"),
        ("[" * 100_000, "damaged"),
        ('{"version": 1, "tensors": 3}', "damaged"),
        ('{"version": 2, "tensors": {}}', "version 2, this program reads 1"),
        (
            '{"version": 1, "tensors": {"other": ["bitmask", "F32", [64], 2]}}',
            "'other' is damaged: its bytes are missing",
        ),
    ],
)
def test_damaged_metadata_is_refused(metadata: str, says: str) -> None:
    with pytest.raises(RunError, match=says):
        unpack(tampered([], metadata=metadata))


def test_an_entry_of_another_type_is_refused() -> None:
    text = json.dumps({"version": 1, "tensors": {"w": entry("bitmask", [64], 2)}})
    with pytest.raises(RunError, match="its bytes are missing"):
        unpack(safetensors.torch.save({"w": torch.zeros(4)}, {KEY: text}))


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 100, -1])
def test_truncated_files_are_refused(cut: int) -> None:
    data = pack({"w": sparse_tensor((32, 32), 0.1)}, ["w"])
    with pytest.raises(RunError, match="not a readable safetensors file"):
        unpack(data[:cut])


SMALL = pack({"w": sparse_tensor((16, 16), 0.1), "b": sparse_tensor((16, 9), 0.5)}, ["w", "b"])


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_are_refused_or_read_as_something_of_bounded_size(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SMALL)
    for place, value in changes:
        data[place] = value
    try:
        back = unpack(bytes(data))
    except RunError:
        return
    assert sum(value.numel() for value in back.values()) <= ELEMENTS_A_BYTE * len(data)


@pytest.mark.parametrize("header", [{"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, {"w": 3}, [], 7])
def test_headers_that_make_no_sense_are_refused(header: object) -> None:
    text = json.dumps(header).encode()
    with pytest.raises(RunError, match="not a readable safetensors file"):
        unpack(len(text).to_bytes(8, "little") + text + b"\0")


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(data: bytes) -> None:
    try:
        back = unpack(data)
    except RunError:
        return
    assert back == {}
