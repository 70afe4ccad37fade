"""Commands of `sweq`, by what they are about; `harness.__main__` puts them together."""
