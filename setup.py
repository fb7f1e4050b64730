"""What pyproject.toml cannot say: what is compiled, which may be absent.

`optional` makes setuptools go on where it cannot be built (no C compiler, no Python headers): the package then runs
on the same functions in Python.

The codec's hot functions are written twice, in Python and in Cython. The data plane is written once, in Python: it is
compiled from the same files, and the .pxd beside each gives the types of its fields and local variables.
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

DATA_PLANE = ("base", "requests", "lane", "client", "plane")
COMPILED = [
    Extension("proxy.codec._compiled", ["proxy/codec/_compiled.pyx"]),
    *(Extension(f"proxy.dataplane.{name}", [f"proxy/dataplane/{name}.py"]) for name in DATA_PLANE),
]

# annotation_typing: the types are those of the .pxd alone; an annotation of "int" means a number of any size.
# nonecheck: None where an object is expected is an AttributeError, as it is in Python.
modules = cythonize(
    COMPILED, compiler_directives={"annotation_typing": False, "nonecheck": True}, build_dir="build/cython"
)
for module in modules:
    module.optional = True

setup(ext_modules=modules, options={"build_ext": {"parallel": os.cpu_count()}})
