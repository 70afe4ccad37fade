"""From a patch to a verdict, as the official grader would give it."""
