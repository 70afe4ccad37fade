"""The table of release archives, and the script that it becomes."""

import subprocess
from dataclasses import replace

import pytest

from harness.errors import UserError
from harness.instances import Instance
from harness.sandbox.images.sdist import Sdist, build, build_script, load_sdists

INSTANCE = Instance(
    instance_id="own__example-1",
    repo="own/example",
    base_commit="a" * 40,
    version="1",
    problem_statement="",
    patch="",
    test_patch="",
    fail_to_pass=(),
    pass_to_pass=(),
    eval_script="",
    log_parser="",
    eval_type="",
    image="official:latest",
)
ENTRY = Sdist(sdist="example==1.0", python="3.11", pins=("pytest==7.3.1",), steps=("touch 'a file'",))


def test_every_entry_pins_one_release_and_all_dependencies():
    table = load_sdists()
    assert {"mwaskom__seaborn-3069", "pallets__flask-5014"} <= set(table)
    for entry in table.values():
        assert all(requirement.count("==") == 1 for requirement in (entry.sdist, *entry.pins))
        assert any(pin.startswith("pytest==7.") for pin in entry.pins)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "must be a mapping"),
        ("one__x-1: {sdist: a==1, python: '3.11'}", "one__x-1.pins: Field required"),
        ("one__x-1: {sdist: a==1, python: '3.11', pins: [], pin: []}", "one__x-1.pin: Extra inputs"),
        ("one__x-1: {sdist: a==1, python: '2.7', pins: []}", "one__x-1.python: must be one of 3.11"),
    ],
)
def test_a_bad_table_is_refused_by_file_and_key(tmp_path, text, message):
    path = tmp_path / "sdists.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_sdists(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_script_is_valid_shell_and_names_what_it_must():
    script = build_script(INSTANCE, ENTRY)
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False).stderr == ""
    assert f"refs/replace/{INSTANCE.base_commit}" in script
    assert "touch 'a file'\n" in script
    assert script.index("-R /build/") < script.index("git commit") < script.index("update-ref")


@pytest.mark.parametrize(
    ("ids", "source", "message"),
    [
        (["pallets__flask-5014"], "official", "--source official: must be sdist"),
        ([], "sdist", "name the instances to build with -i: .*pallets__flask-5014"),
        (["own__example-1"], "sdist", "own__example-1: not in sdists.yaml, which has .*pallets__flask-5014"),
        (["pallets__flask-5014"], "sdist", "pallets__flask-5014: not among the data set's instances"),
    ],
)
def test_what_cannot_be_built_is_refused_before_docker_is_asked(monkeypatch, ids, source, message):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    with pytest.raises(UserError, match=message):
        build(ids, [INSTANCE], source, print)


def test_no_daemon_is_said_so(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    row = replace(INSTANCE, instance_id="pallets__flask-5014")
    with pytest.raises(UserError, match="no daemon answers at unix:///nowhere: start it, or use --sandbox namespace"):
        build([row.instance_id], [row], "sdist", print)
