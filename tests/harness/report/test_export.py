"""Exports: read back by the official loader's rules, by csv and by YAML."""

import csv
import io
import json
import sys

import pytest
import yaml

from harness.__main__ import main
from harness.errors import UserError
from harness.report.arms import load_run
from harness.report.export import export, to_csv, to_latex, to_markdown
from harness.report.simulate import REPOS, Simulation, simulate


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    rates = {"bf16": 0.7, "int4": 0.4}
    return simulate(tmp_path_factory.mktemp("export") / "run", Simulation(instances=6, repeats=2, rates=rates))


def test_a_submission_has_the_official_layout(run):
    root = export(run, "submission", level="int4", repeat=1)
    lines = [json.loads(line) for line in (root / "all_preds.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert all(set(line) == {"instance_id", "model_name_or_path", "model_patch"} for line in lines)
    for line in lines:
        folder = run / "levels" / "int4" / "instances" / line["instance_id"] / "1"
        for name in ("patch.diff", "report.json", "test_output.txt"):
            copy = root / "logs" / line["instance_id"] / name
            assert copy.exists() == (folder / name).exists()
        assert (root / "trajs" / f"{line['instance_id']}.json").read_bytes() == (
            folder / "trajectory.json"
        ).read_bytes()
    metadata = yaml.safe_load((root / "metadata.yaml").read_text())
    assert metadata["info"]["name"].startswith("SIMULATED")
    assert metadata["tags"]["system"]["attempts"] == "1"
    assert "Simulated data" in (root / "README.md").read_text()
    with pytest.raises(UserError, match="exists already"):
        export(run, "submission", level="int4", repeat=1)


def test_tables_hold_the_figures_and_say_that_they_are_simulated(run):
    loaded = load_run(run)
    rows = list(csv.DictReader(io.StringIO(to_csv(loaded))))
    assert len(rows) == 24
    assert {row["simulated"] for row in rows} == {"True"}
    assert "Baseline: bf16" in to_markdown(loaded)
    latex = to_latex(loaded)
    assert latex.count(r"\begin{tabular}") == latex.count(r"\bottomrule") == 3
    assert "SIMULATED DATA" in latex
    assert r"95\% CI" in latex


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "word"], "--format word: no such format"),
        (["--format", "submission"], "a submission is one level: bf16, int4"),
        (["--format", "submission", "--level", "q2"], "--level q2: no such level"),
        (["--format", "submission", "--level", "bf16", "--repeat", "7"], "--repeat 7"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(sys, "argv", ["sweq", "export", str(run), *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert words in said
    assert said.count("\n") == 1


def test_simulated_rates_are_those_that_were_asked_for(tmp_path):
    plan = Simulation(instances=500, repeats=5, rates={"bf16": 0.6, "int4": 0.5}, trajectories=False, infra_share=0)
    rows = load_run(simulate(tmp_path / "run", plan)).rows
    solved = rows.groupby("level")["resolved"].mean()
    # The mean of 500 instances with a standard deviation of .38 each; three standard errors.
    assert solved["bf16"] == pytest.approx(0.6, abs=0.052)
    assert solved["bf16"] - solved["int4"] == pytest.approx(0.1, abs=0.03)
    assert rows.groupby("repo")["instance_id"].nunique().to_dict() == dict(REPOS)
    with pytest.raises(UserError, match="holds a run already"):
        simulate(tmp_path / "run", plan)
