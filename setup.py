"""What pyproject.toml cannot say: what is compiled, which may be absent.

`optional` makes setuptools go on where it cannot be built (no C compiler, no Python headers): the package then runs
on the same functions in Python.

The codec's hot functions are written twice, in Python and in Cython. The data plane is written once, in Python: it is
compiled from the same files, and the .pxd beside each gives the types of its fields and local variables.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DATA_PLANE = frozenset(f"proxy.dataplane.{name}" for name in ("tally", "base", "requests", "lane", "client", "plane"))
COMPILED = [
    Extension("proxy.codec._compiled", ["proxy/codec/_compiled.pyx"]),
    *(Extension(name, [name.replace(".", "/") + ".py"]) for name in sorted(DATA_PLANE)),
]


class Build(build_ext):
    """Leaves nothing of what cannot be built, not even what an earlier build made: it would be of other sources.

    The data plane is compiled whole or not at all: its modules reach into each other's objects, and none of them can
    be imported next to one that is left in Python.
    """

    def build_extensions(self) -> None:
        self.failed: set[str] = set()
        super().build_extensions()
        if self.failed & DATA_PLANE:
            self.failed |= DATA_PLANE
        for name in self.failed:
            Path(self.get_ext_fullpath(name)).unlink(missing_ok=True)

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except BaseException:
            self.failed.add(ext.name)
            raise

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        for name in self.failed:
            Path(self.get_ext_filename(name)).unlink(missing_ok=True)


# annotation_typing: the types are those of the .pxd alone; an annotation of "int" means a number of any size.
# nonecheck: None where an object is expected is an AttributeError, as it is in Python.
modules = cythonize(
    COMPILED, compiler_directives={"annotation_typing": False, "nonecheck": True}, build_dir="build/cython"
)
for module in modules:
    module.optional = True

setup(ext_modules=modules, cmdclass={"build_ext": Build}, options={"build_ext": {"parallel": os.cpu_count()}})
