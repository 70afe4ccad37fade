"""A small typed configuration format."""

from inicfg.errors import ConfigError
from inicfg.reader import load, loads
from inicfg.writer import dumps

__all__ = ["ConfigError", "dumps", "load", "loads"]
