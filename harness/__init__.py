"""Runs agents on SWE-bench instances at several quantization levels, grades and compares them."""
