"""A streamed search finds what sorting the whole table finds."""

import gc

import pytest
import torch
from torch import Tensor

from detjac_lanczos.reading import table_search
from detjac_lanczos.reading.table_search import best_rows


@pytest.mark.parametrize("chunk_elements", [1, 700, 1 << 23])
@pytest.mark.parametrize("cosine", [False, True])
def test_equals_a_full_sort(monkeypatch: pytest.MonkeyPatch, chunk_elements: int, cosine: bool) -> None:
    monkeypatch.setattr(table_search, "_CHUNK_ELEMENTS", chunk_elements)
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(500, 12, generator=generator, dtype=torch.float64)
    table[17] = 0
    queries = torch.randn(12, 7, generator=generator, dtype=torch.float64)
    temperature = torch.linspace(0.5, 3, 7, dtype=torch.float64)
    bias = torch.randn(500, 1, generator=generator, dtype=torch.float64)
    scores = table @ queries
    if cosine:
        scores = scores / table.norm(dim=1).clamp_min(1e-300)[:, None] / queries.norm(dim=0)
    logits = scores * temperature + bias
    found = best_rows(
        table, queries, 9, cosine=cosine, logits=lambda part, start, stop: part * temperature + bias[start:stop]
    )
    expected = logits.sort(dim=0, descending=True)
    assert torch.equal(found.ids, expected.indices[:9])
    torch.testing.assert_close(found.scores, scores.gather(0, found.ids), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found.shares, logits.softmax(dim=0).gather(0, found.ids), rtol=1e-13, atol=1e-13)


def test_no_more_rows_than_the_table_has() -> None:
    found = best_rows(torch.eye(3), torch.tensor([[3.0], [1.0], [2.0]]), 10)
    assert found.ids[:, 0].tolist() == [0, 2, 1]


def test_half_precision_tables_are_searched_in_float32() -> None:
    table = torch.randn(300, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    query = torch.randn(16, 1, generator=torch.Generator().manual_seed(2)).bfloat16()
    expected = (table.float() @ query.float())[:, 0].sort(descending=True)
    found = best_rows(table, query, 20)
    assert torch.equal(found.ids[:, 0], expected.indices[:20])


def test_of_equal_rows_in_several_chunks_the_first_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_search, "_CHUNK_ELEMENTS", 1)
    table = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).repeat(20, 1)
    queries = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    expected = (table @ queries).sort(dim=0, descending=True, stable=True)
    assert torch.equal(best_rows(table, queries, 8).ids, expected.indices[:8])


def test_no_more_is_held_of_a_longer_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_search, "_CHUNK_ELEMENTS", 1)

    def most_held(size: int) -> int:
        held = []

        def logits(scores: Tensor, start: int, stop: int) -> Tensor:
            found = [item for item in gc.get_objects() if isinstance(item, Tensor)]
            held.append(sum(item.numel() for item in found if item.shape[1:] == (37,)))
            return scores

        best_rows(torch.ones(size, 4), torch.ones(4, 37), 5, logits=logits)
        return max(held)

    assert most_held(200) == most_held(20)
