"""Markup in every string that a model, a dataset or a server can choose."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from harness.run.paths import RunPaths

PLANT = "\"'></script><script>window.planted=1</script><img src=x onerror=window.planted=2>{{ 7 * 7 }}&amp;"


def plant_everywhere(root):
    """Put markup into every string that a model, a dataset or a server can choose."""
    paths = RunPaths(root)
    table = pq.read_table(paths.results).to_pandas()
    for column in ("instance_id", "repo", "difficulty", "limit", "infra_reason"):
        table[column] = PLANT + table[column]
    # A path cannot hold a slash.
    table["instance_id"] = table["instance_id"].str.replace("/", "%")
    pq.write_table(pa.Table.from_pandas(table), paths.results)
    record = json.loads(paths.record.read_text())
    record["run_id"] = record["config"]["model"] = record["dataset"]["name"] = record["harness_version"] = PLANT
    record["started"] = record["ended"] = PLANT
    paths.record.write_text(json.dumps(record))
    for level in ("bf16", "int4"):
        plant_task(paths.level(level).task(table["instance_id"][0], 0), table["instance_id"][0])
    return table["instance_id"][0]


def plant_task(task, instance_id):
    task.root.mkdir(parents=True)
    task.patch.write_bytes(PLANT.encode() + b"\xff")
    task.test_output.write_text(f"FAILED {PLANT}")
    status = {"FAIL_TO_PASS": {"success": [], "failure": [PLANT]}}
    task.report.write_text(json.dumps({instance_id: {"tests_status": status}}))
    calls = [
        {"id": PLANT, "type": "function", "function": {"name": PLANT, "arguments": arguments}}
        for arguments in (PLANT, json.dumps({"path": PLANT, "old": PLANT, "new": PLANT}), json.dumps({PLANT: PLANT}))
    ]
    messages = [
        {"role": PLANT, "content": PLANT},
        {"role": "assistant", "content": PLANT, "tool_calls": calls},
        {"role": "tool", "content": [{"type": "text", "text": PLANT + "\udce9"}]},
    ]
    usage = {"prompt_tokens": 100, "completion_tokens": 5, "cached_tokens": 40}
    action = {"kind": "bash", "subject": PLANT, "exit_code": 1, "timed_out": False, "dropped": 0, "seconds": 0.1}
    step = {"number": 1, "messages": 3, "seed": 0, "usage": usage, "max_tokens": 9, "finish_reason": PLANT}
    step |= {"seconds_model": 1.0, "seconds_tools": 0.1, "actions": [action], "format_error": PLANT}
    ending = {"limit": "none", "submitted": False, "patch_bytes": 1, "notes": [PLANT], "error": PLANT}
    content = {"format": "sweq-trajectory", "version": 1, "info": {}, "messages": messages, "steps": [step]}
    task.trajectory.write_text(json.dumps(content | {"ending": ending}))
