"""`sweq-engine`: the engine's command line. Heavy imports wait until a command needs them, so that --help is quick."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.errors import LostRankError, UserError

if TYPE_CHECKING:
    from engine.llm import LLM

app = typer.Typer(
    help="Serve and measure a model at a quantization level.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Tokens per second, beside the ceiling of the memory.", no_args_is_help=True)
app.add_typer(bench, name="bench")

Model = Annotated[
    str, typer.Option(help="a directory, a .gguf file, a hub id, package:<package>/<file> or synthetic:<shape>[@seed]")
]
Quant = Annotated[str, typer.Option(help="f32, bf16, fp8, int8, int4-fp8, int4 or as-stored")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one")]
Ranks = Annotated[
    int, typer.Option("--tensor-parallel-size", min=1, help="processes that share each layer; on GPUs one GPU each")
]
Ahead = Annotated[bool, typer.Option(help="launch a decode step before the last one is read")]
MaxContext = Annotated[int | None, typer.Option(help="tokens of prompt and completion; default: the model's own")]


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="the text to continue, as it is: no chat template is applied")],
    quant: Quant = "as-stored",
    max_tokens: Annotated[int, typer.Option(help="tokens to generate at most")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    top_p: Annotated[float, typer.Option(help="probability that the candidates make up together")] = 1.0,
    top_k: Annotated[int, typer.Option(help="number of candidates; 0 for all")] = 0,
    seed: Annotated[int | None, typer.Option(help="makes a sampled text repeatable")] = None,
    tensor_parallel_size: Ranks = 1,
    device: Device = None,
) -> None:
    """Continue a text and print what follows it."""
    from engine.core.request import SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    params.check()
    limits = {"max_running": 1, "tensor_parallel_size": tensor_parallel_size}
    completion = _load(model, quant, device, **limits).generate(prompt, params)[0]
    if completion.error is not None:
        raise UserError(f"generation failed: {completion.error}")
    typer.echo(completion.text)


@app.command()
def serve(
    model: Model,
    quant: Quant = "as-stored",
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one")] = 8000,
    max_context: MaxContext = None,
    max_running: Annotated[int, typer.Option(help="requests in a batch at most")] = 32,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar="SWEQ_API_KEY", help="a key to ask clients for; may be repeated (the variable: spaces)"),
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="a file with a key per line, beside those above")] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="origin whose pages may call the server, as https://host; may be repeated")
    ] = None,
    max_waiting: Annotated[int, typer.Option(help="requests beside the batch at most; more get status 429")] = 1024,
    max_body: Annotated[float, typer.Option(help="MiB of a request at most; more get status 413")] = 64,
    served_model_name: Annotated[str | None, typer.Option(help="name in /v1/models; default: the model's own")] = None,
    max_step_tokens: Annotated[
        int | None, typer.Option(help="tokens computed in a step at most; default: 1024 on CPU, 4096 on a GPU")
    ] = None,
    prefix_cache: Annotated[bool, typer.Option(help="reuse what earlier requests computed")] = True,
    deterministic: Annotated[
        bool, typer.Option(help="fixed tiles, each request alone: the cache and other requests change no text; slower")
    ] = False,
    cuda_graphs: Annotated[bool, typer.Option(help="on a GPU, decode steps as captured graphs")] = True,
    decode_ahead: Ahead = False,
    state_cache: Annotated[float | None, typer.Option(help="GiB of DeltaNet snapshots on the device")] = None,
    host_state_cache: Annotated[float | None, typer.Option(help="GiB of DeltaNet snapshots in host memory")] = None,
    swap: Annotated[float | None, typer.Option(help="GiB of host memory for preempted requests")] = None,
    tensor_parallel_size: Ranks = 1,
    device: Device = None,
) -> None:
    """Serve the model over an OpenAI-compatible API until SIGTERM or Ctrl-C."""
    from engine.config import EngineConfig
    from engine.llm import default_device
    from engine.serve.app import serve as serve_model
    from engine.serve.guard.keys import collect_keys

    if max_waiting < 0:
        raise UserError(f"--max-waiting {max_waiting}: give a number of requests, 0 or more")
    if not 0 < max_body < 2**20:
        raise UserError(f"--max-body {max_body}: give MiB, more than 0")

    serve_model(
        model,
        quant,
        host,
        port,
        config=EngineConfig(
            max_context=max_context,
            max_running=max_running,
            max_step_tokens=max_step_tokens,
            prefix_cache=prefix_cache,
            deterministic=deterministic,
            cuda_graphs=cuda_graphs,
            decode_ahead=decode_ahead,
            state_cache_bytes=_bytes(state_cache, "--state-cache"),
            host_state_cache_bytes=_bytes(host_state_cache, "--host-state-cache"),
            swap_bytes=_bytes(swap, "--swap"),
            tensor_parallel_size=tensor_parallel_size,
            device=device or default_device(),
        ),
        api_keys=collect_keys(api_key or (), api_key_file),
        cors_origins=tuple(cors_origin or ()),
        max_waiting=max_waiting,
        max_body=int(max_body * 2**20),
        served_model_name=served_model_name,
    )


@app.command()
def perplexity(
    model: Model,
    text: Annotated[Path, typer.Option(help="a UTF-8 text file to score, or conversations as .jsonl: their answers")],
    quant: Quant = "as-stored",
    reference: Annotated[str | None, typer.Option(help="a model to measure the divergence from")] = None,
    reference_quant: Annotated[str, typer.Option(help="level of the reference")] = "f32",
    window: Annotated[int, typer.Option(help="tokens that are scored together")] = 1024,
    tensor_parallel_size: Ranks = 1,
    device: Device = None,
) -> None:
    """Print the perplexity over a text as JSON and, with --reference, the divergence from that model."""
    from engine.measure.conversations import holds_conversations, score_file

    context = None if holds_conversations(text) else window
    limits = {"max_running": 1, "max_context": context, "prefix_cache": False}
    other = _load(reference, reference_quant, device, **limits) if reference is not None else None
    llm = _load(model, quant, device, tensor_parallel_size=tensor_parallel_size, **limits)
    figures = score_file(llm, text, window, other)
    _print_json({"model": model, "quant": quant, "text": str(text), "reference": reference} | figures)


@bench.command(name="decode")
def bench_decode(
    model: Model,
    quant: Quant = "as-stored",
    batch: Annotated[int, typer.Option(help="sequences decoded together")] = 1,
    prompt: Annotated[int, typer.Option(help="tokens in the context of each when it starts")] = 32,
    tokens: Annotated[int, typer.Option(help="tokens generated for each")] = 64,
    decode_ahead: Ahead = False,
    tensor_parallel_size: Ranks = 1,
    device: Device = None,
) -> None:
    """Print decoded tokens per second as JSON."""
    from engine.measure.throughput import decode

    def measure(llm: "LLM") -> dict[str, Any]:
        return decode(llm, batch, prompt, tokens)

    limits = {"max_running": batch, "max_context": prompt + tokens, "decode_ahead": decode_ahead}
    _print_json(_beside_one(model, quant, device, tensor_parallel_size, limits, measure))


@bench.command(name="prefill")
def bench_prefill(
    model: Model,
    quant: Quant = "as-stored",
    tokens: Annotated[int, typer.Option(help="tokens of the prompt")] = 1024,
    tensor_parallel_size: Ranks = 1,
    device: Device = None,
) -> None:
    """Print prompt tokens per second as JSON."""
    from engine.measure.throughput import prefill

    limits = {"max_running": 1, "max_context": tokens + 1}
    _print_json(_beside_one(model, quant, device, tensor_parallel_size, limits, lambda llm: prefill(llm, tokens)))


@bench.command(name="roofline")
def bench_roofline(
    model: Model,
    quant: Annotated[str, typer.Option(help="f32, bf16, fp8, int8, int4-fp8 or int4")],
    batch: Annotated[int, typer.Option(help="sequences decoded together")] = 1,
    context: Annotated[int, typer.Option(help="tokens in the context of each")] = 2048,
    bandwidth: Annotated[float, typer.Option(help="memory, TB/s; default: one H200")] = 4.3,
    rate: Annotated[float, typer.Option(help="bfloat16 products, TFLOP/s; default: one H200")] = 790,
) -> None:
    """Print as JSON what bytes and operations allow: the limit beside which speeds stand. Nothing is loaded."""
    from engine.measure.roofline import Machine, decode_bytes, decode_limit, level_bytes, prefill_limit
    from engine.weights.loader import open_source, resolve

    config, machine = open_source(resolve(model)).config, Machine(bandwidth * 1e12, rate * 1e12)
    sizes = level_bytes(config, quant)
    figures = {
        "weights_bytes": sum(sizes.values()),
        "decode_bytes_per_step": decode_bytes(config, sizes, batch, context),
        "decode_tokens_per_second": decode_limit(config, sizes, batch, context, machine),
        "prefill_tokens_per_second": prefill_limit(config, sizes, context, machine),
    }
    _print_json({"model": model, "quant": quant, "batch": batch, "context": context} | figures)


@bench.command(name="sweep")
def bench_sweep(
    model: Model,
    quant: Quant = "as-stored",
    batches: Annotated[str, typer.Option(help="decode at these batches, e.g. 1,8,32")] = "1,8,32,128",
    context: Annotated[int, typer.Option(help="tokens in the context of each when decoding starts")] = 2048,
    prompts: Annotated[str, typer.Option(help="prefill of these lengths, e.g. 8192,32768")] = "8192,32768",
    tokens: Annotated[int, typer.Option(help="tokens generated for each sequence")] = 64,
    repeats: Annotated[int, typer.Option(help="runs of each, of which the median counts")] = 3,
    out: Annotated[Path, typer.Option(help="directory of the JSON, the table and the plot")] = Path(
        "results/benchmarks"
    ),
    tensor_parallel_size: Ranks = 1,
    device: Device = None,
) -> None:
    """Measure decode and prefill over batches and lengths; write JSON, a Markdown table and a plot."""
    from engine.measure.sweep import sweep, table, write

    counts, lengths = _numbers("--batches", batches), _numbers("--prompts", prompts)
    limits = {"max_running": max(counts), "max_context": max(*lengths, context) + tokens + 1, "prefix_cache": False}
    limits |= {"max_step_tokens": max(8192, *counts), "tensor_parallel_size": tensor_parallel_size}
    llm = _load(model, quant, device, **limits)
    result = sweep(llm, counts, context, lengths, tokens, repeats)
    files = write(result, out, f"{model.split(':')[-1].replace('/', '-')}-{quant}")
    typer.echo(table(result) + "\n" + "\n".join(map(str, files)))


@bench.command(name="agent")
def bench_agent(
    model: Model,
    quant: Quant = "as-stored",
    conversations: Annotated[int, typer.Option(help="conversations that run side by side")] = 8,
    turns: Annotated[int, typer.Option(help="requests of each, one after another")] = 12,
    first_prompt: Annotated[int, typer.Option(help="tokens of the first prompt")] = 6000,
    generated: Annotated[int, typer.Option(help="tokens of each answer")] = 150,
    tool_tokens: Annotated[int, typer.Option(help="new tokens of each later prompt")] = 900,
    prefix_cache: Annotated[bool, typer.Option(help="reuse what earlier turns computed")] = True,
    deterministic: Annotated[
        bool | None, typer.Option(help="fixed tiles, so that the cache changes no text; default: on a CPU")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="run again without the cache; status 1 if texts differ")
    ] = False,
    tensor_parallel_size: Ranks = 1,
    device: Device = None,
) -> None:
    """Replay an agent's conversations and print as JSON what the cache saved."""
    from engine.llm import default_device
    from engine.measure.trace import Trace, replay

    trace = Trace(conversations, turns, first_prompt, generated, tool_tokens)
    trace.check()
    fixed = (device or default_device()) == "cpu" if deterministic is None else deterministic

    def run(cached: bool) -> dict[str, Any]:
        limits = {"max_running": conversations, "max_context": trace.context, "deterministic": fixed}
        limits["prefix_cache"] = cached
        return _beside_one(model, quant, device, tensor_parallel_size, limits, lambda llm: replay(llm, trace))

    figures = run(prefix_cache)
    if not check:
        _print_json(figures)
        return
    cold = run(False)
    same = cold["text_sha256"] == figures["text_sha256"]
    _print_json(figures | {"identical_text": same, "without_cache": cold})
    raise typer.Exit(0 if same else 1)


@app.command()
def inspect(model: Model, quant: Quant = "as-stored", tensor_parallel_size: Ranks = 1) -> None:
    """Print what the model is and the bytes its weights take in memory, per class of tensors, as JSON.

    With --tensor-parallel-size also the bytes of each rank, whose parts are loaded one after another.
    """
    from engine.weights.loader import load, memory_report

    reports: list[dict[str, int]] = []
    identity: dict[str, Any] = {}
    for rank in range(tensor_parallel_size):
        checkpoint = load(model, quant, "cpu", rank, tensor_parallel_size)
        reports.append(memory_report(checkpoint))
        identity = identity or checkpoint.identity
    totals = {kind: sum(report.get(kind, 0) for report in reports) for kind in reports[0]}
    parts = {} if tensor_parallel_size == 1 else {"bytes_by_rank": [sum(report.values()) for report in reports]}
    _print_json(identity | {"bytes_by_class": totals, "bytes": sum(totals.values())} | parts)


@app.command()
def quantize(
    src: Annotated[str, typer.Argument(help="the model to read, as --model of the other commands")],
    dst: Annotated[Path, typer.Argument(help="the directory to write; --model of the other commands takes it")],
    format: Annotated[str, typer.Option(help="f32, bf16, fp8, int8, int4-fp8 or int4")],
) -> None:
    """Write a model packed at a level, so that it loads at once. The same call continues an interrupted one."""
    from engine.weights.writer import quantize as write

    typer.echo(write(src, dst, format))


def _beside_one(
    model: str,
    quant: str,
    device: str | None,
    size: int,
    limits: dict[str, Any],
    measure: Callable[["LLM"], dict[str, Any]],
) -> dict[str, Any]:
    """Figures of a model over `size` ranks and, if there are several, of one rank in the same run beside them."""
    llm = _load(model, quant, device, tensor_parallel_size=size, **limits)
    try:
        figures = measure(llm)
    finally:
        llm.close()
    if size == 1:
        return figures
    del llm
    figures["tensor_parallel_size"] = size
    try:
        one = measure(_load(model, quant, device, **limits))
    except UserError as error:
        return figures | {"one_rank": f"cannot be measured: {error}"}
    ratio = {key: figures[key] / one[key] for key in _SPEEDS if one.get(key) and figures.get(key)}
    return figures | {"one_rank": one, "ratio_to_one_rank": ratio}


_SPEEDS = ("tokens_per_second", "wall_seconds")


def _load(model: str, quant: str, device: str | None, **limits: Any) -> "LLM":
    from engine.llm import LLM

    return LLM(model, quant, device, **limits)


def _numbers(option: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{option} {text}: give whole numbers with commas between, e.g. 1,8,32") from error
    if min(numbers) < 1:
        raise UserError(f"{option} {text}: each must be at least 1")
    return numbers


def _bytes(gib: float | None, option: str) -> int | None:
    if gib is not None and not 0 <= gib < 2**20:
        raise UserError(f"{option} {gib}: give GiB, 0 or more")
    return None if gib is None else int(gib * 2**30)


def _print_json(figures: dict[str, Any]) -> None:
    typer.echo(json.dumps(figures, indent=2))


def main() -> None:
    """Run the command line: a user's mistake is one line on stderr and exit status 2, a lost rank and 1."""
    # The engine shares its cores with sandboxes and tests. A worker of the OpenMP pool that spins for milliseconds at
    # every barrier takes the core from the very thread it waits for; one that sleeps at once needs 50 us to wake up,
    # 100 times per token. So spin for about as long as waking up takes. Only GNU's library reads this name.
    os.environ.setdefault("GOMP_SPINCOUNT", "500")
    try:
        app()
    except UserError as error:
        print(f"sweq-engine: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except LostRankError as error:
        print(f"sweq-engine: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
