"""Builds the package and its C extension; everything else is declared in pyproject.toml."""
from setuptools import setup

setup(cffi_modules=["csrc/build_engine.py:ffibuilder"])
