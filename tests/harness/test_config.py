"""Configurations: what is read, and one line for everything that is wrong."""

from pathlib import Path

import pytest

from harness.config import EndpointConfig, load_config, read_api_key, served_at
from harness.errors import UserError

ROOT = Path(__file__).parents[2]
GOOD = """
name: tiny
dataset: starter
model: some/model
levels: [bf16, int4]
agent: {profile: text, step_limit: 5}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(GOOD)
    (tmp_path / "levels.yaml").write_text((ROOT / "configs/levels.yaml").read_text())
    return path


def test_a_good_file_with_overrides(file: Path) -> None:
    config = load_config(file, ["agent.step_limit=7", "repeats=3", "levels=[int8]", "endpoint.engine_args=[--x, '1']"])
    assert (config.agent.step_limit, config.agent.profile, config.repeats) == (7, "text", 3)
    assert [(level.name, level.quant) for level in config.levels] == [("int8", "int8")]
    assert config.endpoint.engine_args == ("--x", "1")


def test_a_level_may_be_a_mapping_and_needs_no_levels_file(file: Path) -> None:
    (file.parent / "levels.yaml").unlink()
    levels = load_config(file, ["levels=[anything, {name: mine, quant: int4, model: other.gguf}]"]).levels
    assert [(level.name, level.quant, level.model) for level in levels] == [
        ("anything", "anything", None),
        ("mine", "int4", "other.gguf"),
    ]


@pytest.mark.parametrize("name", ["demo", "starter-500", "smollm2", "verified"])
def test_any_run_can_go_to_a_server_that_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(Path(f"configs/{name}.yaml"), served_at("http://h:1/v1"))
    assert [level.name for level in config.levels] == ["served"]
    assert (config.endpoint.base_url, config.model, config.perplexity_text) == ("http://h:1/v1", None, None)
    named = load_config(Path(f"configs/{name}.yaml"), [*served_at("http://h:1/v1"), "levels=[awq]", "baseline=awq"])
    assert named.baseline == "awq"


@pytest.mark.parametrize("name", ["demo", "starter-500", "smollm2", "verified", "endpoint"])
def test_the_configurations_that_we_ship(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert load_config(Path(f"configs/{name}.yaml")).name == name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("agent.step_limt=3", "--set agent.step_limt: unknown key (did you mean step_limit?); known here: profile, "),
        ("colour=red", "--set colour: unknown key; known here: name, dataset, "),
        ("repeats=0", "--set repeats: input should be greater than or equal to 1, not 0"),
        ("agent.profile=external", "agent.external: needed with agent.profile external, and only there"),
        ("agent.external={name: x, command: y}", "agent.external: needed with agent.profile external"),
        ("agent={profile: external, external: {name: x, command: y, folders: [r]}}", "external.folders: no folder r;"),
        ("agent.external={name: x, command: y, comand: z}", "unknown key (did you mean command?)"),
        ("agent=5", "--set agent: expected a mapping with some of profile, step_limit, "),
        (
            "agent.profile=chat",
            "--set agent.profile: input should be 'tools', 'text', 'mini', 'editor' or 'external', not ",
        ),
        ("levels=[]", "--set levels: expected at least 1 item"),
        ("levels=[in4]", "levels: unknown level 'in4' (did you mean int4?); "),
        ("levels=[int4, int4]", "levels: int4 appears more than once"),
        ("levels=[{name: ../x}]", "levels.0.name: string should match pattern"),
        ("levels=[{name: a, quants: b}]", "levels.0.quants: unknown key (did you mean quant?)"),
        ("baseline=f32", "baseline: 'f32' is not a level of this run (bf16, int4)"),
        ("model=null", "model: missing; with endpoint.kind engine"),
        ("endpoint.kind=url", "endpoint.base_url: needed with endpoint.kind url (level bf16 has none)"),
        ("endpoint.base_url=http://h/v1", "endpoint.base_url: only used with endpoint.kind url"),
        ("endpoint={kind: url, base_url: 'h:1'}", "base_url: 'h:1' of level bf16 must start with http://"),
        ("perplexity_text=none.txt", "perplexity_text: no file none.txt under "),
        ("images.sorce=pull", "--set images.sorce: unknown key (did you mean source?); known here: source, registry,"),
        ("images.disk_budget=40Q", "--set images.disk_budget: expected a size such as 40G or 512MiB, not '40Q'"),
        ("images.disk_budget=40G", "images.disk_budget: only used with source pull or tar; set one, or"),
        ("images={source: pull, registry: 'http://h'}", "images.registry: string should match pattern"),
        ("images.registry=h", "images.registry: only used with source pull"),
        ("images.source=tar", "images.folder: needed with source tar: a folder of archives"),
        ("images={source: tar, folder: none}", "images.folder: no folder none under "),
        ("images={source: pull, folder: none}", "images.folder: only used with source tar"),
        ("images.prefetch=-1", "--set images.prefetch: input should be greater than or equal to 0, not -1"),
        ("step", "--set step: expected key=value or key.sub=value"),
        ("name.sub=1", "--set name.sub=1: name is not a mapping"),
        ("levels=[", "--set levels=[: the value is not valid YAML"),
    ],
)
def test_a_wrong_key_or_value_is_one_line(file: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(file, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith((str(file), "--set"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: x\ndataset: starter\n", "levels: missing"),
        ("- a\n", "holds no mapping"),
        ("name: [x\n", "not valid YAML"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_api_key_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    assert read_api_key(EndpointConfig(api_key="$SOME_KEY")) == "secret"
    assert read_api_key(EndpointConfig(api_key="plain")) == "plain"
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(UserError, match="environment variable SOME_KEY is not set"):
        read_api_key(EndpointConfig(api_key="$SOME_KEY"))
