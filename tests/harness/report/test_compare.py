"""Comparisons, their guard, and the command line around them."""

import json
import sys

import pytest

from harness.__main__ import main
from harness.errors import UserError
from harness.report.compare import compare
from harness.run.outcome import Outcome

SOLVED, FAILED = Outcome.RESOLVED, Outcome.UNRESOLVED


def compared(root, *targets, **options):
    assert compare(list(targets) or [str(root)], output=root / "out.json", echo=False, **options) == 0
    return json.loads((root / "out.json").read_text())


def test_pairs_by_instance(fake_store):
    outcomes = {("bf16", i, 0): SOLVED if i < 5 else FAILED for i in range(10)}
    outcomes |= {("int4", i, 0): SOLVED if i in (0, 1, 2, 9) else FAILED for i in range(10)}
    outcomes[("int4", 8, 0)] = Outcome.INFRA_ERROR
    (found,) = compared(fake_store(levels=["bf16", "int4"], instances=10, outcomes=outcomes))["comparisons"]
    assert (found["level"], found["n"], len(found["lost"]), len(found["won"])) == ("int4", 9, 2, 1)
    assert found["difference"] == pytest.approx(-1 / 9)
    assert found["mcnemar"] == {"lost": 2, "won": 1, "p": 1.0, "mid_p": pytest.approx(0.625)}


def test_finds_the_level_that_is_worse_and_says_what_the_others_need(fake_store, capsys):
    rates = {"bf16": 0.7, "fp8": 0.7, "int4": 0.55}
    root = fake_store(levels=list(rates), instances=500, repeats=3, true_rates=rates)
    assert compare([str(root)]) == 0
    found = json.loads((root / "compare.json").read_text())
    assert found["baseline"] == "bf16"
    assert [one["verdict"].split()[0] for one in found["comparisons"]] in (
        [["inconclusive:", "worse"], ["equivalent", "worse"]]
    )
    assert all(one["test"] == "sign-flip permutation" for one in found["comparisons"])
    text = capsys.readouterr().out
    assert "baseline: bf16" in text
    assert "Simulated data" in text
    assert "nan" not in text.lower()


def test_few_instances_are_warned_of(fake_store, capsys):
    compare([str(fake_store(instances=49))])
    assert "Below 50 instances the bootstrap interval is too narrow" in " ".join(capsys.readouterr().out.split())


def test_nothing_solved_is_inconclusive(fake_store):
    root = fake_store(instances=12, true_rates=dict.fromkeys(["bf16", "int8", "int4"], 0))
    assert all(one["verdict"].startswith("inconclusive") for one in compared(root)["comparisons"])


def test_targets_are_folders_ids_and_levels(fake_store, monkeypatch, tmp_path):
    root = fake_store(instances=5, run_id="results/runs/here")
    monkeypatch.chdir(tmp_path)
    assert [arm["label"] for arm in compared(root, "here")["arms"]] == ["bf16", "int8", "int4"]
    found = compared(root, "here:int8", f"{root}:int4", baseline="int4")
    assert (found["baseline"], [one["level"] for one in found["comparisons"]]) == ("int4", ["int8"])
    other = fake_store(instances=5, run_id="there", levels=["bf16"])
    found = compared(root, "here:int4", str(other))
    assert [arm["label"] for arm in found["arms"]] == ["results/runs/here:int4", "there:bf16"]


@pytest.mark.parametrize(
    ("field", "key", "value"),
    [
        ("dataset", "dataset.sha256", "c" * 64),
        ("profile", "config.agent.profile", "text"),
        ("profile", "agent_version", 2),
        ("prompts", "prompts_sha256", "c" * 64),
        ("sampling", "config.sampling.temperature", 0.5),
        ("budgets", "config.agent.step_limit", 9),
        ("budgets", "config.endpoint.max_context", 4096),
        ("harness_version", "harness_version", "0.0.9"),
    ],
)
def test_guard_names_the_field_and_lets_it_be_allowed(fake_store, field, key, value):
    one = fake_store(instances=5, run_id="one", levels=["bf16"])
    two = fake_store(instances=5, run_id="two", levels=["int4"], change={key: value})
    with pytest.raises(UserError, match=rf"{field}: {key} is .*--allow {field}$"):
        compare([str(one), str(two)], echo=False)
    assert list(compared(one, str(one), str(two), allow=[field])["allowed"]) == [field]


def test_seeds_and_levels_may_differ(fake_store):
    one = fake_store(instances=5, run_id="one", levels=["bf16"])
    two = fake_store(instances=5, run_id="two", levels=["int4"], change={"config.sampling.seed": 7})
    assert compared(one, str(one), str(two))["allowed"] == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: no such run"),
        (["{run}:int3"], "has no tasks at level 'int3'"),
        (["{run}:int4"], "a comparison needs at least two"),
        (["{run}", "--baseline", "q8"], "--baseline q8"),
        (["{run}", "--allow", "weather"], "--allow weather: no such field"),
        (["{run}", "--margin", "0"], "--margin 0"),
    ],
)
def test_bad_input_is_one_line_and_status_2(fake_store, monkeypatch, capsys, arguments, words):
    root = fake_store(instances=3)
    monkeypatch.setattr(sys, "argv", ["sweq", "compare", *(part.format(run=root) for part in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert words in said
    assert said.count("\n") == 1
