"""Loads a model and puts together what is served."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from engine.config import EngineConfig
from engine.core.opening import load_engine, suit_threads
from engine.serve.service import Service
from engine.text.chat import ChatTemplate
from engine.weights.loader import memory_report


def open_service(model: str, quant: str, config: EngineConfig, name: str | None = None) -> Service:
    """Load `model` at level `quant` and make it ready to serve under `name` (the model's own when None).

    Raises CheckpointError or UserError where the model cannot be loaded or its template does not compile.
    """
    engine = load_engine(model, quant, config)
    checkpoint = engine.checkpoint
    suit_threads([engine])
    source = checkpoint.chat_template
    template = None if source is None else ChatTemplate(source, checkpoint.tokenizer.special_tokens, model)
    return Service(
        engine=engine,
        tokenizer=checkpoint.tokenizer,
        template=template,
        name=name or model_name(model),
        model=model,
        max_context=engine.max_context,
        identity=_identity(checkpoint.identity, memory_report(checkpoint), template)
        | {
            "max_context": engine.max_context,
            "device": config.device,
            "tensor_parallel_size": config.tensor_parallel_size,
        },
        ranks=engine.ranks,
    )


def model_name(model: str) -> str:
    """A short name for a model given as a path, `package:` file, hub id or `synthetic:` shape."""
    if model.startswith("synthetic:") or (not model.startswith(("package:", "/", ".")) and not model.endswith(".gguf")):
        return model
    return model.rstrip("/").rpartition("/")[2].removesuffix(".gguf")


def _identity(
    checkpoint: Mapping[str, Any], weights_by_class: Mapping[str, int], template: ChatTemplate | None
) -> dict[str, Any]:
    """What makes two servers comparable. Byte counts are bytes in memory."""
    return {
        "engine": "sweq-engine",
        "version": version("sweq"),
        "model": checkpoint.get("model"),
        "quant": checkpoint.get("quant"),
        "recipe": checkpoint.get("recipe"),
        "group": checkpoint.get("group"),
        "source_types": checkpoint.get("source_types"),
        "weights_bytes": sum(weights_by_class.values()),
        "weights_by_class": dict(weights_by_class),
        "weights_sha256": checkpoint.get("sha256"),
        "template_sha256": template.sha256 if template else None,
        "supports_tools": bool(template and template.supports_tools),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
