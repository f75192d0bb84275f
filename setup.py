"""Packages and their folders; the metadata is in pyproject.toml.

The folder kernels/ imports as emu3_kernels: a top-level package named `kernels` exists on PyPI.
"""

from setuptools import find_packages, setup

packages = find_packages(include=["emu3_megatron", "emu3_megatron.*"])
kernels = ["emu3_kernels", *(f"emu3_kernels.{name}" for name in find_packages("kernels"))]

setup(
    packages=packages + kernels,
    package_dir={"emu3_kernels": "kernels"},
    package_data={
        "emu3_megatron.config": ["recipes/*.yaml"],
        "emu3_megatron.alignment.voting": ["page.html", "page.css", "page.js"],
        "emu3_megatron.serving": ["page/page.html", "page/page.css", "page/page.js"],
        "emu3_kernels": ["lib/*.so"],
    },
)
