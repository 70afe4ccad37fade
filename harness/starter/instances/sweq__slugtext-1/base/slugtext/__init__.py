"""Text helpers for a static site."""

from slugtext.slug import slugify, unique_slug
from slugtext.wrapping import excerpt, wrap

__all__ = ["excerpt", "slugify", "unique_slug", "wrap"]
