"""Every family against the plain reference, operation by operation."""

from typing import Any

import pytest
import torch

from engine.kernels import cpu, cuda, reference
from engine.kernels.ops import Kernels

FAMILIES = [pytest.param(cpu, id="cpu"), pytest.param(cuda, id="cuda")]


MANY_ROWS = 1000
"""More than a kernel leaves to one thread."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kernels", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm(kernels: Kernels, dtype: torch.dtype) -> None:
    x, weight = torch.randn(5, 48), torch.rand(48) + 0.5
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-6, dtype), reference.rms_norm(x, weight, 1e-6, dtype))


@pytest.mark.parametrize("kernels", FAMILIES)
@pytest.mark.parametrize("rows", [3, MANY_ROWS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add_rms_norm(kernels: Kernels, rows: int, dtype: torch.dtype) -> None:
    hidden, delta, weight = torch.randn(rows, 48), torch.randn(rows, 48).to(dtype), torch.rand(48) + 0.5
    total = hidden + delta
    got = kernels.add_rms_norm(hidden, delta, weight, 1e-6, dtype)
    torch.testing.assert_close(hidden, total)
    torch.testing.assert_close(got, reference.rms_norm(total, weight, 1e-6, dtype))


@pytest.mark.parametrize("kernels", FAMILIES)
@pytest.mark.parametrize("rows", [5, MANY_ROWS])
def test_silu_mul(kernels: Kernels, rows: int) -> None:
    gate, up = 9 * torch.randn(rows, 48), torch.randn(rows, 48)
    torch.testing.assert_close(kernels.silu_mul(gate.clone(), up), reference.silu_mul(gate, up))


@pytest.mark.parametrize("kernels", FAMILIES)
@pytest.mark.parametrize("rotary", [8, 16])
def test_rotate(kernels: Kernels, rotary: int) -> None:
    """As a rotation of the plane (i, i + R): lengths stay, and the reference is a complex multiplication."""
    x = torch.randn(7, 3, 16)
    angles = torch.randn(7, 1, rotary // 2)
    got = kernels.rotate(x, angles.cos(), angles.sin())
    plane = torch.complex(x[..., : rotary // 2], x[..., rotary // 2 : rotary]) * torch.polar(torch.ones(()), angles)
    torch.testing.assert_close(got, torch.cat([plane.real, plane.imag, x[..., rotary:]], dim=-1))


@pytest.mark.parametrize("kernels", FAMILIES)
@pytest.mark.parametrize("rows", [3, MANY_ROWS])
def test_rotate_and_store(kernels: Kernels, rows: int) -> None:
    query, key, value = torch.randn(rows, 6, 16), torch.randn(rows, 2, 16), torch.randn(rows, 2, 16)
    angles, slots = torch.randn(rows, 1, 4), torch.randperm(MANY_ROWS + 8)[:rows]
    caches = [(torch.zeros(63, 16, 2, 16), torch.zeros(63, 16, 2, 16)) for _ in range(2)]
    got, expected = (
        family.rotate_and_store(query, key, value, angles.cos(), angles.sin(), *cache, slots)
        for family, cache in zip((kernels, reference), caches, strict=True)
    )
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(caches[0], caches[1])


@pytest.mark.parametrize("kernels", FAMILIES)
@pytest.mark.parametrize("tables", [[[3, 4, 5], [9, 0, 7], [1, 2, 0]], [[0, 1, 2], [3, 4, 5], [6, 7, 8]]])
@pytest.mark.parametrize("query_lens", [(1, 1, 1), (40, 1, 5), (44, 33, 17)])
def test_paged_attention(kernels: Kernels, tables: list[list[int]], query_lens: tuple[int, ...]) -> None:
    blocks, context_lens = torch.tensor(tables, dtype=torch.int32), (44, 33, 17)
    keys, values = torch.randn(10, 16, 2, 8), torch.randn(10, 16, 2, 8)
    query = torch.randn(sum(query_lens), 6, 8)
    results = [
        k.paged_attention(query, keys, values, k.plan_attention(blocks, query_lens, context_lens, 16), 0.3)
        for k in (kernels, reference)
    ]
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernels", FAMILIES)
def test_paged_attention_over_several_query_tiles(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.attention, "QUERY_TILE", 7)
    test_paged_attention(kernels, [[3, 4, 5], [9, 0, 7], [1, 2, 0]], (40, 1, 5))


def test_single_tokens_over_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.compiler, "PARALLEL_PRODUCTS", 0)
    test_paged_attention(cpu, [[3, 4, 5], [9, 0, 7], [1, 2, 0]], (1, 1, 1))


def test_single_tokens_over_a_bfloat16_cache() -> None:
    blocks = torch.tensor([[3, 9], [1, 0]], dtype=torch.int32)
    keys, values, query = (
        torch.randn(10, 16, 2, 8).bfloat16(),
        torch.randn(10, 16, 2, 8).bfloat16(),
        torch.randn(2, 6, 8),
    )
    lens = ((1, 1), (20, 9), 16)
    got = cpu.paged_attention(query, keys, values, cpu.plan_attention(blocks, *lens), 0.3)
    expected = reference.paged_attention(
        query, keys.float(), values.float(), reference.plan_attention(blocks, *lens), 0.3
    )
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("query_lens", [(1, 1, 1), (1, 5, 1)])
@pytest.mark.parametrize("gathered", [1, 48, 96])
def test_single_tokens_in_several_gathers(
    query_lens: tuple[int, ...], gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda.attention, "GATHERED_TOKENS", gathered)
    test_paged_attention(cuda, [[3, 4, 5], [9, 0, 7], [1, 2, 0]], query_lens)


@pytest.mark.parametrize("kernels", FAMILIES)
def test_store_kv(kernels: Kernels) -> None:
    keys, values = torch.zeros(4, 16, 2, 8), torch.zeros(4, 16, 2, 8)
    new_keys, new_values = torch.randn(3, 2, 8), torch.randn(3, 2, 8)
    kernels.store_kv(new_keys, new_values, keys, values, torch.tensor([0, 63, 17]))
    assert torch.equal(keys.view(-1, 2, 8)[[0, 63, 17]], new_keys)
    assert torch.equal(values.view(-1, 2, 8)[[0, 63, 17]], new_values)
    assert keys.count_nonzero() == new_keys.numel()
