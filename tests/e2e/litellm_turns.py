"""Run by litellm's own Python: an agent's turns of forced tool calls, as mini-swe-agent keeps its history.

Arguments: base URL, model, number of turns, "plain" or "stream". Prints one JSON line a turn.
"""

import json
import sys
from typing import Any

import litellm

COMMAND = {"type": "string", "minLength": 1, "maxLength": 12}
BASH = {
    "type": "function",
    "function": {
        "name": "bash",
        "description": "Execute a bash command",
        "parameters": {"type": "object", "properties": {"command": COMMAND}, "required": ["command"]},
    },
}


def ask(url: str, model: str, messages: list[Any], turn: int, stream: bool) -> Any:
    answer = litellm.completion(
        model=f"openai/{model}",
        api_base=url,
        api_key="x",
        messages=messages,
        tools=[BASH],
        tool_choice="required",
        temperature=0.7,
        seed=turn,
        max_tokens=400,
        stream=stream,
        **({"stream_options": {"include_usage": True}} if stream else {}),
    )
    return litellm.stream_chunk_builder(list(answer), messages=messages) if stream else answer


def main() -> None:
    url, model, turns, mode = sys.argv[1:]
    messages: list[Any] = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Solve the issue."},
    ]
    for turn in range(int(turns)):
        answer = ask(url, model, messages, turn, mode == "stream")
        message, usage = answer.choices[0].message, answer.usage
        messages.append(message.model_dump())
        calls = message.tool_calls or []
        messages += [{"role": "tool", "tool_call_id": call.id, "content": f"output {turn}"} for call in calls]
        details = usage.prompt_tokens_details
        record = {
            "finish_reason": answer.choices[0].finish_reason,
            "calls": [[call.function.name, json.loads(call.function.arguments)] for call in calls],
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": (details and details.cached_tokens) or 0,
        }
        print(json.dumps(record))


if __name__ == "__main__":
    main()
