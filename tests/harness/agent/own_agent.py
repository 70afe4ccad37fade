"""A command-line agent of the plainest kind: asks over HTTP, runs what it is told, ends when no tool is called."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path


def ask(messages, **fields):
    """The answer's message; ends with status 3 where the request is refused."""
    body = {"model": "mine", "messages": messages, "temperature": 0.1, **fields}
    request = urllib.request.Request(
        os.environ["SWEQ_BASE_URL"] + "/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        print(error.code, error.read().decode())
        if "--stubborn" in sys.argv:
            return {"role": "assistant", "tool_calls": []}
        sys.exit(3)
    if not fields.get("stream"):
        return json.loads(text)["choices"][0]["message"]
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return {key: value for event in events for choice in event["choices"] for key, value in choice["delta"].items()}


def main():
    messages = [{"role": "user", "content": Path(os.environ["SWEQ_TASK_FILE"]).read_text()}]
    while True:
        answer = ask(messages, stream="--stream" in sys.argv)
        messages.append(answer)
        calls = answer.get("tool_calls") or []
        for call in calls:
            command = json.loads(call["function"]["arguments"])["command"]
            done = subprocess.run(command, shell=True, capture_output=True, text=True)
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": done.stdout + done.stderr})
        if not calls and "--stubborn" not in sys.argv:
            return


if __name__ == "__main__":
    main()
