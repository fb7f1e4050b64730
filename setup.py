"""What pyproject.toml cannot say: the compiled codec, which may be absent.

`optional` makes setuptools go on where it cannot be built (no C compiler, no Python headers): the package then runs
on the same functions in Python.
"""

from setuptools import Extension, setup

setup(ext_modules=[Extension("proxy.codec._compiled", ["proxy/codec/_compiled.pyx"], optional=True)])
