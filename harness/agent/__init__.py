"""The agent: loop, tools, prompts, trajectory."""
