"""A trained model as one object: `load` opens it, its methods prompt it."""

from flamingo_jax.data.prompt import Text, Video, text
from flamingo_jax.use.command import generate_command
from flamingo_jax.use.loading import from_parts, load
from flamingo_jax.use.model import LoadedFlamingo

__all__ = ["LoadedFlamingo", "Text", "Video", "from_parts", "generate_command", "load", "text"]
