"""Decode and prefill speeds over batches and lengths, each beside its limit, as JSON, a Markdown table and a plot."""

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from engine.llm import LLM
from engine.measure import throughput
from engine.measure.bandwidth import copy_bandwidth, product_rate
from engine.measure.roofline import Machine, decode_limit, prefill_limit
from engine.weights.loader import memory_report


def sweep(
    llm: LLM, batches: Sequence[int], context: int, prompts: Sequence[int], tokens: int = 64, repeats: int = 3
) -> dict[str, Any]:
    """Decode at each of `batches` after `context` tokens, and prefill of each of `prompts` tokens.

    The limits are of the bandwidth and rate measured just before, and of the bytes that the weights take.
    """
    device, config, sizes = torch.device(llm.engine.config.device), llm.checkpoint.config, memory_report(llm.checkpoint)
    machine = Machine(copy_bandwidth(device), product_rate(device))
    ranks, figures = llm.engine.config.tensor_parallel_size, list[dict[str, Any]]()
    for count in batches:
        run = throughput.decode(llm, count, context, tokens, repeats)
        limit = decode_limit(config, sizes, count, context + tokens // 2, machine, ranks)
        times = {key: run[key] for key in ("seconds_per_step", "device_seconds_per_step")}
        figures.append(
            _figure("decode", run["tokens_per_second"], limit) | {"batch": count, "context": context, **times}
        )
    for length in prompts:
        throughput.prefill(llm, length, 1)
        speed = throughput.prefill(llm, length, repeats)["tokens_per_second"]
        figures.append(
            _figure("prefill", speed, prefill_limit(config, sizes, length, machine, ranks)) | {"prompt": length}
        )
    measured = {"bandwidth_bytes_per_second": machine.bandwidth, "operations_per_second": machine.rate}
    return {
        "model": llm.checkpoint.identity["model"],
        "quant": llm.checkpoint.identity["quant"],
        "tensor_parallel_size": ranks,
        "weights_bytes": sum(sizes.values()),
        "machine": versions(device) | measured,
        "figures": figures,
    }


def _figure(kind: str, speed: float, limit: float) -> dict[str, Any]:
    return {"kind": kind, "tokens_per_second": speed, "limit_tokens_per_second": limit, "share": speed / limit}


def versions(device: torch.device) -> dict[str, str]:
    """What a figure was measured with: device, driver, libraries, and the commit of the working tree."""
    packages = {name: _version(name) for name in ("torch", "triton")}
    gpu = {"device": "cpu"}
    if device.type == "cuda":
        gpu = {"device": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda), "driver": _driver()}
    return gpu | packages | {"python": sys.version.split()[0], "commit": _commit()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _driver() -> str:
    try:
        line = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except OSError:
        return "unknown"
    return driver_in(line)


def driver_in(line: str) -> str:
    """The version in the first line of the driver's own report, whose words differ between its open and closed kind."""
    found = re.search(r"\d+\.\d+(\.\d+)*", line)
    return found[0] if found else "unknown"


def _commit() -> str:
    here = Path(__file__).parent
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def write(result: dict[str, Any], directory: Path, name: str) -> list[Path]:
    """Write `name`.json, .md and .png to `directory`, made if it is not there; returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / f"{name}.{ending}" for ending in ("json", "md", "png")]
    files[0].write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    files[1].write_text(table(result), encoding="utf-8")
    _plot(result, files[2])
    return files


def table(result: dict[str, Any]) -> str:
    """The figures as a Markdown table below a line that says what they were measured with."""
    machine = result["machine"]
    said = ", ".join(f"{key} {value}" for key, value in machine.items() if isinstance(value, str))
    lines = [f"# {result['model']} at {result['quant']}", "", said, "", "| what | tokens/s | limit | share |"]
    lines.append("|---|---:|---:|---:|")
    for figure in result["figures"]:
        speed, limit = figure["tokens_per_second"], figure["limit_tokens_per_second"]
        lines.append(f"| {_label(figure)} | {speed:,.1f} | {limit:,.0f} | {figure['share']:.1%} |")
    return "\n".join(lines) + "\n"


def _label(figure: dict[str, Any]) -> str:
    if figure["kind"] == "decode":
        return f"decode, batch {figure['batch']}, context {figure['context']:,}"
    return f"prefill, {figure['prompt']:,} tokens"


def _plot(result: dict[str, Any], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panels = {"decode": ("batch", "sequences"), "prefill": ("prompt", "prompt tokens")}
    for axes, (kind, (key, label)) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        shown = sorted((one for one in result["figures"] if one["kind"] == kind), key=lambda one: int(one[key]))
        at = [one[key] for one in shown]
        axes.plot(at, [one["limit_tokens_per_second"] for one in shown], "--", color="0.5", label="limit")
        axes.plot(at, [one["tokens_per_second"] for one in shown], "o-", label="measured")
        axes.set(title=kind, xlabel=label, ylabel="tokens/s", xscale="log", yscale="log")
        axes.legend()
    figure.savefig(file, dpi=150)
