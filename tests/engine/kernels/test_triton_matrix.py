"""The Triton matrix kernels against float64: on a GPU at the real widths, else in Triton's interpreter on small ones.

The interpreter has no bfloat16 products, so there activations are float32 and results agree to float32's rounding.
"""

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

GPU = torch.cuda.is_available()
if not GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1 in the environment", allow_module_level=True)
pytest.importorskip("triton")

from engine.kernels import reference  # noqa: E402
from engine.kernels.block_words import WORDS  # noqa: E402
from engine.kernels.triton_matrix import activations, blocks, grouped, linear, routing, tables  # noqa: E402
from engine.kernels.triton_matrix import experts as few  # noqa: E402
from engine.kernels.triton_matrix.mixture import expert_stack  # noqa: E402
from engine.kernels.triton_matrix.operands import FORMATS, operands  # noqa: E402
from engine.quant import int4  # noqa: E402
from engine.quant.cut import cut_columns  # noqa: E402
from engine.quant.formats import Packed, dequantize, pack  # noqa: E402
from engine.quant.gguf_blocks import BLOCK_TYPES, expand  # noqa: E402
from engine.quant.gguf_words import device_order  # noqa: E402
from engine.quant.linear import PackedExperts, QuantizedLinear, join_experts, stack_experts  # noqa: E402

DEVICE, DTYPE = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
EXPERTS, TOP, HIDDEN, INNER = (64, 10, 2048, 512) if GPU else (5, 2, 256, 128)
TOLERANCE = 5e-3 if GPU else 1e-6
FP8_TOLERANCE = 6e-2
"""Two roundings of activations to three bits of mantissa; the interpreter truncates instead."""

on_gpu = pytest.mark.gpu
sizes = pytest.mark.parametrize("tokens", [1, 3, 17, 100] if GPU else [1, 3])
formats = pytest.mark.parametrize("format", [*FORMATS, *WORDS])
MIXTURES = [(format, n) for format in (*FORMATS, *WORDS) for n in ([1, 3, 17, 100] if GPU else [1, 3])]
MIXTURES = [(format, n) for format, n in MIXTURES if GPU or format not in WORDS or n == 3]
HALVES = {"Q4_0": (0,), "Q8_0": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where the float16 of a block are."""
SIZES = {"Q4_0": 5, "Q8_0": 74, "Q4_K": 280, "Q5_K": 570, "Q6_K": 1370}
"""About what random blocks hold where these are 1."""


@pytest.fixture(autouse=True)
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    if not GPU:  # few programs: the interpreter runs them one after another
        wide = {"BN": 128, "BM": 16, "CHOICES": 2, "num_warps": 4, "num_stages": 1}
        keys = {name: {key: wide[key] for key in launch} for name, launch in tables.DEFAULTS.items()}
        monkeypatch.setattr(tables, "DEFAULTS", keys)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN, so that what a kernel leaves unwritten shows."""
    empty = torch.empty

    def filled(*shape: object, **options: object) -> Tensor:
        made: Tensor = empty(*shape, **options)
        return made.fill_(float("nan")) if made.is_floating_point() and made.itemsize > 1 else made

    monkeypatch.setattr(torch, "empty", filled)


def random_blocks(rows: int, columns: int, format: str) -> Tensor:
    """Rows of blocks as in a file: any bytes, but scales that make weights of about columns^-1/2."""
    kind = BLOCK_TYPES[format]
    blocks = torch.randint(0, 256, (rows, columns // kind.width, kind.bytes), dtype=torch.uint8)
    for start in HALVES[format]:
        halves = (torch.rand(blocks.shape[:2]) + 0.5) * torch.randn(blocks.shape[:2]).sign()
        scaled = (halves * columns**-0.5 / SIZES[format]).half().unsqueeze(-1)
        blocks[:, :, start : start + 2] = scaled.view(torch.uint8)
    return blocks.flatten(1)


def packed(rows: int, columns: int, format: str) -> tuple[Packed, Tensor]:
    """A matrix as a GPU holds it, and its values in float64."""
    if format in WORDS:
        blocks = random_blocks(rows, columns, format)
        words = {"blocks": device_order(blocks.to(DEVICE), format)}
        return Packed(format, (rows, columns), words), expand(blocks, BLOCK_TYPES[format]).to(DEVICE).double()
    made = pack(torch.randn(rows, columns, device=DEVICE) * columns**-0.5, format)
    values = dequantize(made).double()
    if format == "int4" and not GPU:
        made.tensors["codes"] = int4.pack_halves(int4.unpack_codes(made.tensors["codes"]), made.group // 2)
    return made, values


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


@formats
@sizes
def test_linear(format: str, tokens: int) -> None:
    matrix, values = packed(1000 if GPU else 200, HIDDEN, format)
    x = torch.randn(tokens, HIDDEN, device=DEVICE, dtype=DTYPE)
    known = operands(matrix)
    assert known is not None
    assert error(linear.multiply(x, known), x.double() @ values.t()) < TOLERANCE


@formats
@pytest.mark.parametrize("tokens", [5, 40] if GPU else [3])
def test_linear_of_shared_columns(format: str, tokens: int) -> None:
    """A matrix so narrow that several programs share its columns, twice, for counters must be left as they were."""
    matrix, values = packed(70, 4096 if GPU else 1024, format)
    x = torch.randn(tokens, matrix.shape[1], device=DEVICE, dtype=DTYPE)
    known = operands(matrix)
    assert known is not None
    assert linear.column_splits(known) > 1
    for _ in range(2):
        assert error(linear.multiply(x, known), x.double() @ values.t()) < TOLERANCE


@on_gpu
@pytest.mark.skipif(not GPU, reason="no CUDA device")
def test_a_tokens_result_is_the_same_in_any_batch() -> None:
    matrix, _ = packed(256, HIDDEN, "fp8")
    x = torch.randn(30, HIDDEN, device=DEVICE, dtype=DTYPE)
    known = operands(matrix)
    assert known is not None
    assert torch.equal(linear.multiply(x, known)[:2], linear.multiply(x[:2], known))


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize(("count", "top"), [(512, 10), (20, 3)])
def test_route(renormalise: bool, count: int, top: int) -> None:
    logits = torch.randn(5, count + 1, device=DEVICE).to(DTYPE)[:, :count]
    got, want = (family.route(logits, top, renormalise) for family in (routing, reference))
    torch.testing.assert_close(got[0], want[0])
    chosen = [logits.gather(1, numbers) for _, numbers in (got, want)]  # of equal logits torch takes any
    assert torch.equal(*chosen)
    assert all(len(set(row)) == top for row in got[1].tolist())


def test_choices_are_sorted_by_expert_and_tiled() -> None:
    experts = torch.randint(0, 6, (50, 3), device=DEVICE)
    order, starts = routing.sort_choices(experts, 7)
    flat = experts.flatten()
    assert torch.equal(order.long(), flat.sort(stable=True)[1])
    assert starts.tolist() == [int((flat < expert).sum()) for expert in range(8)]
    tiles = [tile for tile in routing.tile_table(starts, 16, 150).tolist() if tile[0] >= 0]
    bounds = starts.tolist()
    assert tiles == [[e, first] for e in range(7) for first in range(bounds[e], bounds[e + 1], 16)]


def test_activations_are_rounded_as_the_portable_path_does() -> None:
    from engine.quant.fp8_dynamic import quantize_activations

    x = torch.randn(37, 384, device=DEVICE, dtype=DTYPE)
    (codes, scale), (want, want_scale) = activations.quantize(x), quantize_activations(x)
    torch.testing.assert_close(scale, want_scale)
    if GPU:  # the interpreter rounds to e4m3 in another way
        assert (codes.float() == want.float()).float().mean() > 0.99
        assert ((codes.float() - want.float()).abs() <= want.float().abs() / 8 + 2.0**-9).all()


class Mixture:
    """Experts, a shared one and a routing, with the sum that they must give in float64."""

    def __init__(self, format: str, tokens: int) -> None:
        inner = 256 if format in WORDS and not GPU else INNER  # a whole unit
        ups = [packed(2 * inner, HIDDEN, format) for _ in range(EXPERTS + 1)]
        downs = [packed(HIDDEN, inner, format) for _ in range(EXPERTS + 1)]
        self.stacks: tuple[PackedExperts, PackedExperts] = (
            stack_experts([one for one, _ in ups[:EXPERTS]]),
            stack_experts([one for one, _ in downs[:EXPERTS]]),
        )
        self.shared = ups[EXPERTS][0], downs[EXPERTS][0]
        self.x = torch.randn(tokens, HIDDEN, device=DEVICE, dtype=DTYPE)
        logits = torch.randn(tokens, EXPERTS, device=DEVICE)
        logits[:, 1] += 3  # one expert that most tokens choose, and one that none does
        logits[:, 2] -= 30
        self.weights, self.experts = reference.route(logits, TOP, True)
        self.logit = torch.randn(tokens, 3, device=DEVICE, dtype=DTYPE)[:, 1:2]
        self.routed = torch.zeros(tokens, HIDDEN, dtype=torch.float64, device=DEVICE)
        for token in range(tokens):
            for share, e in zip(self.weights[token], self.experts[token].tolist(), strict=True):
                self.routed[token] += share * self._expert(self.x[token], ups[e][1], downs[e][1])
        self.whole = self.routed + torch.sigmoid(self.logit.double()) * self._expert(
            self.x, ups[EXPERTS][1], downs[EXPERTS][1]
        )

    @staticmethod
    def _expert(x: Tensor, up_values: Tensor, down_values: Tensor) -> Tensor:
        gate, up = (x.double() @ up_values.t()).chunk(2, dim=-1)
        return (F.silu(gate) * up) @ down_values.t()


@pytest.mark.parametrize("format", WORDS)
def test_blocks_are_unpacked_exactly(format: str) -> None:
    stored = random_blocks(2 * 5, 5 * 256, format).reshape(2, 5, -1)
    words = device_order(stored.to(DEVICE), format)
    want = expand(stored, BLOCK_TYPES[format])
    for dtype in (torch.float32, torch.bfloat16) if GPU else (torch.float32,):
        assert torch.equal(blocks.unpack(words, format, dtype).cpu(), want.to(dtype))


@pytest.mark.parametrize("tokens", [1, 17, 300] if GPU else [3])
def test_experts_of_unlike_block_types(tokens: int) -> None:
    """Gate, up and down each in a type of its own, as files that mix them have it."""
    kinds, inner = ("Q4_K", "Q6_K", "Q8_0"), 512 if GPU else 256
    shapes = ((inner, HIDDEN), (inner, HIDDEN), (HIDDEN, inner))
    made = [[packed(*shape, kind) for _ in range(4)] for kind, shape in zip(kinds, shapes, strict=True)]
    gate, up, down = (stack_experts([matrix for matrix, _ in part]) for part in made)
    stack = expert_stack(join_experts([gate, up]), down)
    assert stack is not None
    assert stack.split == "Q6_K"
    x = torch.randn(tokens, HIDDEN, device=DEVICE, dtype=DTYPE)
    weights, experts = reference.route(torch.randn(tokens, 4, device=DEVICE), 2, True)
    values = [torch.stack([value for _, value in part]) for part in made]
    inner_values = F.silu(x.double() @ values[0].mT) * (x.double() @ values[1].mT)
    every = (inner_values @ values[2].mT).transpose(0, 1)  # [T, 4, HIDDEN]
    want = (every.gather(1, experts.unsqueeze(2).expand(-1, -1, HIDDEN)) * weights.unsqueeze(2)).sum(1)
    for run in (few.moe, few.by_expert, grouped.moe):
        assert error(run(x, stack, weights, experts, None), want) < TOLERANCE


@pytest.mark.parametrize(("format", "tokens"), MIXTURES)
def test_experts(format: str, tokens: int) -> None:
    made = Mixture(format, tokens)
    alone, joint = expert_stack(*made.stacks), expert_stack(*made.stacks, *made.shared)
    assert alone is not None
    assert joint is not None
    ways: list[tuple[Callable[..., Tensor], float]] = [(few.moe, TOLERANCE), (few.by_expert, TOLERANCE)]
    ways.append((grouped.moe, (FP8_TOLERANCE if GPU else 0.15) if format == "fp8" else TOLERANCE))
    for run, tolerance in ways:
        assert error(run(made.x, joint, made.weights, made.experts, made.logit), made.whole) < tolerance
    assert error(few.moe(made.x, alone, made.weights, made.experts, None), made.routed) < TOLERANCE


@pytest.mark.parametrize("rows", [16, 32, 64] if GPU else [16, 64])
def test_fp8_tiles_of_few_and_of_many_tokens(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles below 64 rows have weights for the left operand."""
    launches = {name: {**launch, "BM": rows} if "BM" in launch else launch for name, launch in tables.DEFAULTS.items()}
    monkeypatch.setattr(tables, "DEFAULTS", launches)
    made = Mixture("fp8", 100 if GPU else 3)
    stack = expert_stack(*made.stacks, *made.shared)
    assert stack is not None
    got = grouped.moe(made.x, stack, made.weights, made.experts, made.logit)
    assert error(got, made.whole) < (FP8_TOLERANCE if GPU else 0.15)


@on_gpu
@pytest.mark.skipif(not GPU, reason="no CUDA device")
@pytest.mark.parametrize("format", ["fp8", "Q4_K"])
@pytest.mark.parametrize("tokens", [1, 8, 300])
def test_experts_in_a_graph(format: str, tokens: int) -> None:
    """A captured mixture follows new contents of its inputs."""
    made = Mixture(format, tokens)
    stack = expert_stack(*made.stacks, *made.shared)
    assert stack is not None
    run = few.moe if tokens < 300 else grouped.moe
    x, experts = torch.randn_like(made.x), torch.arange(TOP, device=DEVICE).expand(tokens, TOP).contiguous()
    run(x, stack, made.weights, experts, made.logit)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run(x, stack, made.weights, experts, made.logit)
    x.copy_(made.x)
    experts.copy_(made.experts)
    graph.replay()
    assert torch.equal(got, run(made.x, stack, made.weights, made.experts, made.logit))
    assert error(got, made.whole) < (TOLERANCE if tokens < 300 or format != "fp8" else FP8_TOLERANCE)


@on_gpu
@pytest.mark.skipif(not GPU, reason="no CUDA device")
@pytest.mark.parametrize("format", WORDS)
def test_layers_of_blocks_on_a_gpu(format: str) -> None:
    """Read as a file has them, moved, multiplied by any number of tokens, looked up, cut, and moved back."""
    stored = Packed(format, (384, 1024), {"blocks": random_blocks(384, 1024, format)})
    values, moved = dequantize(stored), stored.to("cuda")
    assert torch.equal(dequantize(moved).cpu(), values)
    assert torch.equal(moved.to("cpu").tensors["blocks"], stored.tensors["blocks"])
    layer = QuantizedLinear(moved)
    assert layer.gpu is not None
    ids = torch.tensor([3, 0, 383], device="cuda")
    assert torch.equal(layer.rows(ids, torch.float32).cpu(), values[ids.cpu()])
    for tokens in (1, 2, 16, 64, 200):
        x = torch.randn(tokens, 1024, device="cuda", dtype=torch.bfloat16)
        assert error(layer(x), x.double() @ values.double().t().cuda()) < TOLERANCE
    part = cut_columns(moved, range(256, 768))
    assert torch.equal(dequantize(part).cpu(), values[:, 256:768])
    experts = PackedExperts(format, (3, 128, 1024), {"blocks": stored.tensors["blocks"].reshape(3, 128, -1)})
    chosen = experts.to("cuda").gather(torch.tensor([2, 0], device="cuda"), torch.float32)
    assert torch.equal(chosen.cpu(), values.reshape(3, 128, -1)[[2, 0]])
