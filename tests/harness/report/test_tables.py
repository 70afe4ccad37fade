"""The score table, on simulated and on broken run directories."""

import io

import pytest
from rich.console import Console

from harness.errors import UserError
from harness.report.arms import load_run
from harness.report.tables import difficulty_cells, format_bytes, markdown_scores, print_scores, score_rows
from harness.run.outcome import Outcome

INFRA, CLOCK, SOLVED = Outcome.INFRA_ERROR, Outcome.WALL_CLOCK, Outcome.RESOLVED


def printed(root):
    console = Console(file=io.StringIO(), width=120)
    print_scores(root, console)
    return console.file.getvalue()


def test_score_rows_count_answers_only(fake_store):
    outcomes = {
        ("bf16", 0, 0): INFRA,
        ("bf16", 1, 0): CLOCK,
        ("bf16", 2, 0): SOLVED,
        ("bf16", 3, 0): Outcome.UNRESOLVED,
    }
    root = fake_store(levels=["bf16"], instances=4, outcomes=outcomes)
    (row,) = score_rows(load_run(root)).to_dict("records")
    assert (row["answers"], row["resolved"], row["score"]) == (2, 1, 0.5)
    assert (row["infra_error"], row["wall_clock"], row["method"]) == (1, 1, "Wilson")
    assert "1 tasks with an infrastructure error, 1 stopped by the wall clock" in " ".join(printed(root).split())


def test_repeats_are_nested_in_instances(fake_store):
    root = fake_store(levels=["bf16"], instances=40, repeats=5)
    (row,) = score_rows(load_run(root)).to_dict("records")
    pooled_half_width = 1.96 * (row["score"] * (1 - row["score"]) / 200) ** 0.5
    assert row["method"].startswith("BCa")
    assert row["high"] - row["low"] > 2 * pooled_half_width * 1.3


def test_parts_of_the_data_are_counted_apart(fake_store):
    outcomes = {("bf16", index, 0): SOLVED if index < 4 else Outcome.UNRESOLVED for index in range(8)}
    outcomes["bf16", 7, 0] = INFRA
    root = fake_store(levels=["bf16"], instances=8, outcomes=outcomes)
    rows = load_run(root).rows
    header, line = difficulty_cells(load_run(root))
    for name, cell in zip(header[1:], line[1:], strict=True):
        part = rows[(rows["difficulty"] == name.removeprefix("resolved of ")) & (rows["outcome"] != INFRA)]
        assert cell.startswith(f"{int(part['resolved'].sum())}/{len(part)} ")
        assert cell in printed(root)


def test_one_part_is_no_table(fake_store):
    assert difficulty_cells(load_run(fake_store(levels=["int8"], instances=1))) == []


def test_levels_come_in_the_configuration_s_order(fake_store):
    root = fake_store(levels=["int8", "bf16", "int4"], instances=3)
    assert list(score_rows(load_run(root))["level"]) == ["int8", "bf16", "int4"]


def test_printed_and_markdown_tables_hold_the_same_figures(fake_store):
    root = fake_store(instances=12, true_rates=dict.fromkeys(["bf16", "int8", "int4"], 0))
    text, markdown = printed(root), markdown_scores(load_run(root))
    for figure in ("bf16", "148.4 GiB", "0/12", "0.0% [0.0, 24.2]", "Nothing is excluded", "Simulated data"):
        assert figure in text
        assert figure in markdown
    assert "nan" not in text.lower()


def test_unknown_figures_are_dashes_and_missing_tasks_are_told(fake_store):
    root = fake_store(levels=["bf16"], instances=3, change={"levels": {}, "dataset.instances": 5})
    text = printed(root)
    assert "nan" not in text.lower()
    assert "bf16 3 of 5" in text


def test_a_level_with_infrastructure_errors_only_has_no_score(fake_store):
    root = fake_store(levels=["bf16"], instances=2, outcomes={("bf16", 0, 0): INFRA, ("bf16", 1, 0): INFRA})
    text = printed(root)
    assert "0/0" in text
    assert "nan" not in text.lower()


def test_bytes_have_the_unit_that_fits():
    assert [format_bytes(size) for size in (83 * 2**20, 79.1 * 2**30, float("nan"))] == ["83 MiB", "79.1 GiB", "-"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: (root / "run.json").unlink(), "no run directory"),
        (lambda root: (root / "results.parquet").unlink(), "results.parquet: missing"),
        (lambda root: (root / "results.parquet").write_bytes(b"torn"), "results.parquet: no Parquet file"),
        (lambda root: (root / "run.json").write_text("{}"), "run.json: run_id: missing"),
        (lambda root: (root / "run.json").write_text("{"), "run.json"),
    ],
)
def test_broken_run_directories_are_named(fake_store, spoil, words):
    root = fake_store(instances=2)
    spoil(root)
    with pytest.raises(UserError, match=words):
        load_run(root)
