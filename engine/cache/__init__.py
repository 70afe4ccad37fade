"""What a sequence leaves behind: paged keys and values, and the prefixes that can be used again."""
