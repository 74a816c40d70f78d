"""Whole heads and hidden widths of attention, however it is written."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.structure import certify, inspect, slice_model
from amc.structure.modules import SlimMultiheadAttention
from amc.zoo._torchvision import import_torchvision
from tests.structure.checks import assert_exact, outputs


class Fused(nn.Module):
    """One projection for queries, keys and values, as in timm; the head count equals neither 3 nor the size."""

    def __init__(self, dim: int = 20, heads: int = 5) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.inner = heads, dim // heads, dim
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, n, self.inner))


class Separate(nn.Module):
    """Three projections, the formula written out, a bias per head, batch and heads in one dimension."""

    def __init__(self, dim: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.dim_head = heads, dim // heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.bias = nn.Parameter(torch.randn(heads, 1, 1))
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(b, n, self.heads, self.dim_head).transpose(1, 2).reshape(b * self.heads, n, self.dim_head)

        q, k, v = split(self.to_q(x)), split(self.to_k(x)), split(self.to_v(x))
        scores = (q @ k.transpose(1, 2) / self.dim_head**0.5).view(b, self.heads, n, n) + self.bias
        y = scores.softmax(-1).view(b * self.heads, n, n) @ v
        return self.to_out(y.view(b, self.heads, n, self.dim_head).transpose(1, 2).reshape(b, n, -1))


class Grouped(nn.Module):
    """Rotated queries, several to each head of keys and values, as in small language models."""

    def __init__(self, dim: int, heads: int, shared: int, *, written_out: bool) -> None:
        super().__init__()
        self.size, self.times, self.written_out = dim // heads, heads // shared, written_out
        self.q, self.k, self.v = (
            nn.Linear(dim, dim),
            nn.Linear(dim, shared * self.size),
            nn.Linear(dim, shared * self.size),
        )
        self.o = nn.Linear(dim, dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, -1, self.size).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = q * cos + _turned(q) * sin, k * cos + _turned(k) * sin
        if self.written_out:
            k, v = _repeated(k, self.times), _repeated(v, self.times)
            y = (q @ k.transpose(2, 3) * self.size**-0.5).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.o(y.transpose(1, 2).reshape(b, n, -1))


def _turned(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


def _repeated(x: Tensor, times: int) -> Tensor:
    b, heads, n, size = x.shape
    return x[:, :, None].expand(b, heads, times, n, size).reshape(b, heads * times, n, size)


class Rotary(nn.Module):
    """Blocks that share one rotary embedding, so that the features of all their heads are tied."""

    angles: Tensor

    def __init__(self, *blocks: nn.Module, size: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.register_buffer("angles", torch.rand(size // 2))

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[1])[:, None] * torch.cat((self.angles, self.angles))
        for block in self.blocks:
            x = x + block(x, angles.cos(), angles.sin())
        return x


class Self(nn.Module):
    def __init__(self, need_weights: bool, **options: bool) -> None:
        super().__init__()
        self.inside = nn.Linear(6, 12)
        self.attention = nn.MultiheadAttention(12, 3, **options)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x)
        return x + self.attention(x, x, x, need_weights=self.need_weights)[0]


def test_fused_heads_go_whole_and_the_attributes_follow() -> None:
    model, x = Fused(), torch.randn(2, 7, 20)
    structure = assert_exact(model, x)
    assert [(g.name, g.size) for g in structure.groups] == [("qkv", 5)]
    slim = slice_model(model, structure, structure.mask({"qkv": [1, 4]}))
    assert (slim.num_heads, slim.head_dim, slim.inner) == (2, 4, 8)
    assert (model.num_heads, model.inner) == (5, 20)
    rows = [4 * head + place for head in (1, 4) for place in range(4)]
    torch.testing.assert_close(slim.qkv.weight, model.qkv.weight[[20 * part + r for part in range(3) for r in rows]])
    torch.testing.assert_close(slim.proj.weight, model.proj.weight[:, rows])


def test_fused_heads_as_many_as_their_size() -> None:
    """`num_heads` and `head_dim` have one value: their places in the call tell them apart."""
    model, x = Fused(16, 4), torch.randn(1, 5, 16)
    structure = assert_exact(model, x)
    slim = slice_model(model, structure, structure.mask({"qkv": [2]}))
    assert (slim.num_heads, slim.head_dim) == (1, 4)


def test_separate_projections_lose_the_same_heads() -> None:
    structure = assert_exact(Separate(), torch.randn(2, 5, 12))
    assert [g.size for g in structure.groups] == [3]
    assert [structure.layers[i].name for i in structure.groups[0].producers] == ["to_q", "to_k", "to_v"]


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_a_product_of_the_heads_and_a_number_counts_the_heads(size: int) -> None:
    """Whether a head is as long as there are heads, half as long, or twice."""

    class Merged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = 4
            self.q, self.o = nn.Linear(5, 4 * size), nn.Linear(4 * size, 5)

        def forward(self, x: Tensor) -> Tensor:
            b, n, _ = x.shape
            q = self.q(x).view(b, n, -1, size).transpose(1, 2)
            y = F.scaled_dot_product_attention(q, q, q)
            return self.o(y.transpose(1, 2).reshape(b, n, self.heads * size))

    net = Merged()
    structure = assert_exact(net, torch.randn(2, 7, 5))
    assert [g.size for g in structure.groups] == [4]
    assert slice_model(net, structure, structure.mask({"q": [0, 3, 1]})).heads == 3


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_product_of_two_attributes(size: int, turned: bool) -> None:
    """Only one of them counts channels. Where both have one value, the call that has one alone tells which."""

    class Merged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.size = 4, size
            self.q, self.o = nn.Linear(5, 4 * size), nn.Linear(4 * size, 5)

        def forward(self, x: Tensor) -> Tensor:
            b, n, _ = x.shape
            heads = self.heads if size == 4 else -1
            q = self.q(x).view(b, n, heads, self.size).transpose(1, 2)
            y = F.scaled_dot_product_attention(q, q, q).transpose(1, 2)
            return self.o(y.reshape(b, n, self.size * self.heads if turned else self.heads * self.size))

    net = Merged()
    structure = assert_exact(net, torch.randn(2, 7, 5))
    assert [g.size for g in structure.groups] == [4]
    slim = slice_model(net, structure, structure.mask({"q": [0, 3, 1]}))
    assert (slim.heads, slim.size) == (3, size)


class Sliced(nn.Module):
    """One projection for queries, keys and values, cut by hand; several queries may share a head of keys."""

    def __init__(self, heads: int, shared: int, size: int, form: str) -> None:
        super().__init__()
        self.heads, self.shared, self.size, self.form = heads, shared, size, form
        self.inner, self.narrow = heads * size, shared * size
        self.qkv = nn.Linear(5, (heads + 2 * shared) * size)
        self.o = nn.Linear(heads * size, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = self.qkv(x)
        if self.form == "products":
            end = self.heads * self.size
            q, k = y[..., :end], y[..., end : end + self.shared * self.size]
            v = y[..., end + self.shared * self.size :]
        elif self.form == "sums":
            a, c = self.inner, self.inner + self.narrow
            q, k, v = y[..., :a], y[..., a:c], y[..., c:]
        elif self.form == "multiples":
            q, k, v = y[..., : self.inner], y[..., self.inner : 2 * self.inner], y[..., 2 * self.inner :]
        else:
            q, k = y.narrow(-1, 0, self.inner), y.narrow(-1, self.inner, self.narrow)
            v = y.narrow(-1, self.inner + self.narrow, self.narrow)
        q, k, v = (z.reshape(b, n, -1, self.size).transpose(1, 2) for z in (q, k, v))
        z = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.heads > self.shared)
        return self.o(z.transpose(1, 2).reshape(b, n, -1))


@pytest.mark.parametrize(
    ("heads", "shared", "form"),
    [(6, 3, "products"), (6, 3, "sums"), (6, 3, "narrow"), (3, 3, "multiples"), (3, 3, "sums"), (3, 3, "products")],
)
def test_a_projection_that_is_cut_by_hand(heads: int, shared: int, form: str) -> None:
    net = Sliced(heads, shared, 4, form)
    structure = assert_exact(net, torch.randn(2, 7, 5))
    assert [(g.name, g.size) for g in structure.groups] == [("qkv", shared)]
    slim = slice_model(net, structure, structure.mask({"qkv": [0, 2]}))
    assert slim.qkv.out_features == (2 * heads // shared + 4) * 4


def test_a_cut_at_a_number_of_its_own_is_locked() -> None:
    class Literal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 12), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)[..., 3:8])

    assert assert_exact(Literal(), torch.randn(2, 4)).groups == ()


def test_phi_3_cuts_by_the_configuration_of_the_model() -> None:
    import_torchvision()  # transformers imports it where it is, which fails beside some builds of torch
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Phi3Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3, intermediate_size=64,
        vocab_size=60, pad_token_id=0, bos_token_id=1, eos_token_id=2, max_position_embeddings=64,
    )  # fmt: skip
    net = transformers.Phi3ForCausalLM(config).eval()
    structure = assert_exact(net, {"input_ids": torch.randint(3, 60, (1, 9)), "use_cache": False})
    assert [g.size for g in structure.groups if "self_attn" in g.name] == [3, 3]


@pytest.mark.parametrize("written_out", [True, False])
def test_queries_go_with_the_head_of_keys_that_they_share(written_out: bool) -> None:
    net = Rotary(Grouped(24, 6, 3, written_out=written_out), size=4)
    structure = assert_exact(net, torch.randn(2, 5, 24))
    assert [(g.name, g.size) for g in structure.groups] == [("blocks.0.q", 3)]
    slim = slice_model(net, structure, structure.mask({"blocks.0.q": [0, 2]}))
    torch.testing.assert_close(slim.blocks[0].q.weight, net.blocks[0].q.weight[[*range(8), *range(16, 24)]])
    torch.testing.assert_close(slim.blocks[0].k.weight, net.blocks[0].k.weight[[*range(4), *range(8, 12)]])


def test_queries_that_all_share_one_head_go_alone() -> None:
    net = Rotary(Grouped(24, 6, 1, written_out=False), size=4)
    structure = assert_exact(net, torch.randn(2, 5, 24))
    assert [(g.name, g.size) for g in structure.groups] == [("blocks.0.q", 6)]
    slim = slice_model(net, structure, structure.mask({"blocks.0.q": [1, 5]}))
    assert slim.blocks[0].q.out_features == 8
    assert slim.blocks[0].k.out_features == slim.blocks[0].v.out_features == 4


@pytest.mark.parametrize("shared", [6, 3])
def test_the_heads_of_many_blocks_that_share_a_rotary_embedding(shared: int) -> None:
    """One walk moves all of them from the features of a head to the heads."""
    net = Rotary(*(Grouped(24, 6, shared, written_out=True) for _ in range(20)), size=4)
    structure = assert_exact(net, torch.randn(2, 5, 24))
    assert [g.size for g in structure.groups] == [shared] * 20


def test_macs_of_attention_match_hand_count() -> None:
    """7 tokens, width 20: projections 7*20*60 and 7*20*20; scores and values 5 heads * 7*7*4 each."""
    structure = inspect(Fused(), torch.randn(1, 7, 20))
    assert structure.macs == 7 * 20 * 60 + 7 * 20 * 20 + 2 * 5 * 7 * 7 * 4
    assert structure.cost.macs([2]) == 7 * 20 * 24 + 7 * 8 * 20 + 2 * 2 * 7 * 7 * 4


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bias": False}, {"add_bias_kv": True}])
def test_torch_attention_loses_heads(need_weights: bool, options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model, x = Self(need_weights, **options), torch.randn(5, 2, 6)
    structure = assert_exact(model, x)
    assert 3 in [g.size for g in structure.groups]


def test_slim_attention_is_a_plain_module_with_the_same_names() -> None:
    model, x = Self(False), torch.randn(5, 2, 6)
    structure = inspect(model, x)
    heads = next(g.name for g in structure.groups if g.size == 3)
    slim = slice_model(model, structure, structure.mask({heads: [0, 2]}))
    assert type(slim.attention) is SlimMultiheadAttention
    assert type(model.attention) is nn.MultiheadAttention
    assert slim.state_dict().keys() == model.state_dict().keys()
    assert (slim.attention.num_heads, slim.attention.head_dim, slim.attention.embed_dim) == (2, 4, 12)
    again = pickle.loads(pickle.dumps(slim))
    torch.testing.assert_close(again(x), slim(x))
    assert_exact(slim, x, policies=2)  # and can be pruned again


def test_slim_attention_takes_masks_and_returns_weights_as_torch_does() -> None:
    """With no head removed the stand-in must agree with torch's own module."""
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    slim = pickle.loads(pickle.dumps(dense))
    slim.__class__ = SlimMultiheadAttention
    q, kv = torch.randn(3, 4, 8), torch.randn(3, 6, 8)
    mask = torch.rand(4, 6) > 0.7
    padding = torch.zeros(3, 6, dtype=torch.bool)
    padding[1, 4:] = True
    for options in (
        {},
        {"attn_mask": mask},
        {"key_padding_mask": padding},
        {"attn_mask": mask, "key_padding_mask": padding, "average_attn_weights": False},
        {"attn_mask": torch.randn(4, 6), "need_weights": False},
    ):
        for a, b in zip(slim(q, kv, kv, **options), dense(q, kv, kv, **options), strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b)
    for a, b in zip(slim(q[0], kv[0], kv[0]), dense(q[0], kv[0], kv[0]), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="not one a head"):
        slim(q, kv, kv, attn_mask=torch.randn(6, 4, 6))


def test_transformer_encoder_runs_outside_torchs_fast_path() -> None:
    """torch's fused encoder layer would assume equal widths: a pruned layer must not take it."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 4, 20, batch_first=True, norm_first=True)
    model, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(2, 5, 12)
    structure = assert_exact(model, x)
    assert sorted(g.size for g in structure.groups) == [4, 4, 20, 20]
    mask = structure.mask({g.name: range(2) for g in structure.groups})
    slim = slice_model(model, structure, mask).eval()
    with torch.no_grad():
        torch.testing.assert_close(slim(x).double(), outputs(slim, x)[0], rtol=1e-4, atol=1e-5)


def test_decoder_attends_to_another_sequence() -> None:
    torch.manual_seed(0)
    model = nn.TransformerDecoderLayer(12, 3, 16, batch_first=True)
    x = (torch.randn(2, 4, 12), torch.randn(2, 6, 12))
    structure = assert_exact(model, x)
    assert sorted(g.size for g in structure.groups) == [3, 3, 16]


def test_a_literal_head_count_is_bound() -> None:
    class Literal(Fused):
        def forward(self, x: Tensor) -> Tensor:
            b, n, _ = x.shape
            q, k, v = self.qkv(x).reshape(b, n, 3, 5, 4).permute(2, 0, 3, 1, 4).unbind(0)
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))

    structure = assert_exact(Literal(), torch.randn(2, 7, 20), certified=True)
    assert [group.size for group in structure.groups] == [5]


def test_a_literal_head_count_that_cannot_be_bound_is_detected_and_locked() -> None:
    class Literal(Fused):
        def forward(self, x: Tensor) -> Tensor:
            b, n, _ = x.shape
            q, k, v = self.qkv(x).reshape(b, n, 3, 5, 4).permute(2, 0, 3, 1, 4).unbind(0)
            x = F.scaled_dot_product_attention(q, k, v) + torch.ones(5, 1, 1)
            return self.proj(x.transpose(1, 2).reshape(b, n, -1))

    model, x = Literal(), torch.randn(2, 7, 20)
    structure, _ = certify(model, inspect(model, x), x)
    assert structure.groups == ()


def test_a_padding_mask_follows_the_heads_also_where_torch_would_pack_the_input() -> None:
    """Expanded to every head, the mask has whatever heads there are."""
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 4, 20, batch_first=True), 2)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    x = {"src": torch.randn(2, 5, 12), "src_key_padding_mask": padding}
    structure = assert_exact(model, x)
    assert sorted(g.size for g in structure.groups) == [4, 4, 20, 20]
    slim = slice_model(model, structure, structure.mask({g.name: range(2) for g in structure.groups})).eval()
    with torch.no_grad():  # torch's fast path allowed
        torch.testing.assert_close(slim(**x).double(), outputs(slim, x)[0], rtol=1e-4, atol=1e-5)


def test_expanded_tokens_do_not_become_a_group() -> None:
    """A learned token repeated over the batch: the batch is no channel."""

    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 1, 6))
            self.inside, self.outside = nn.Linear(6, 10), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inside(self.token.expand(x.shape[0], -1, -1))
            return self.outside(y.relu()) * x.mean()

    structure = assert_exact(Token(), torch.randn(4, 2))
    assert sorted(g.size for g in structure.groups) == [6, 10]  # the width of the token and of the layer


def test_a_size_is_not_mistaken_for_an_attribute_that_another_line_reads() -> None:
    """`width` is read where the output is viewed, not where the input is, though both are 12 wide."""

    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 12
            self.weight = nn.Parameter(torch.randn(12, 12))

        def forward(self, x: Tensor) -> Tensor:
            y = x.view(-1, x.size(-1)) @ self.weight
            return y.view(x.shape[0], -1, self.width)

    model, x = nn.Sequential(nn.Linear(12, 12), Viewed(), nn.ReLU(), nn.Linear(12, 3)), torch.randn(2, 5, 12)
    structure = assert_exact(model, x)
    assert [group.name for group in structure.groups] == ["0", "1"]
    slim = slice_model(model, structure, structure.mask({"0": range(5), "1": range(7)}))
    assert (slim[1].width, slim[1].weight.shape) == (7, (5, 7))


@pytest.mark.parametrize("way", ["helper", "alias"])
def test_sizes_that_a_function_of_another_name_reads_follow(way: str) -> None:
    """torch.export keeps lines of functions called forward only."""

    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.size, self.inside, self.outside = 3, nn.Linear(6, 12), nn.Linear(12, 3)

        def split(self, y: Tensor) -> Tensor:
            return y.view(y.shape[0], -1, self.size).relu()

        def call(self, x: Tensor) -> Tensor:
            y = self.split(self.inside(x))
            return self.outside(y.flatten(1))

        forward = call

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Split()

        def forward(self, x: Tensor) -> Tensor:
            return self.part(x)

    model = Around() if way == "alias" else Split()
    structure = assert_exact(model, torch.randn(2, 6), certified=True)
    assert [group.size for group in structure.groups] == [3]
    slim = slice_model(model, structure, structure.mask({structure.groups[0].name: [0, 2]}))
    assert (slim.part if way == "alias" else slim).size == 2


def test_heads_go_through_a_convolution_as_a_batch() -> None:
    """Pooled attention, as in MViT: [B, H, L, D] is read as a batch of B H images, each of D channels."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = 4
            self.qkv, self.proj = nn.Linear(20, 60), nn.Linear(20, 20)
            self.pools = nn.ModuleList(nn.Conv2d(5, 5, 3, padding=1, stride=s, groups=5) for s in (1, 2, 2))
            self.norms = nn.ModuleList(nn.LayerNorm(5) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            b, n, _ = x.shape
            parts = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            q, k, v = (
                norm(self.pooled(pool, part)) for pool, norm, part in zip(self.pools, self.norms, parts, strict=True)
            )
            x = (q * 0.4 @ k.transpose(-1, -2)).softmax(-1) @ v
            return self.proj(x.transpose(1, 2).reshape(b, n, -1))

        def pooled(self, pool: nn.Module, x: Tensor) -> Tensor:
            x = pool(x.reshape(-1, 4, 4, x.shape[-1]).permute(0, 3, 1, 2))
            return x.reshape(-1, self.heads, x.shape[1], x.shape[2] * x.shape[3]).transpose(2, 3)

    for batch in (1, 3):
        structure = assert_exact(Pooled(), torch.randn(batch, 16, 20), certified=True)
        assert [group.size for group in structure.groups] == [4]
