"""The shared objects of C++ kernels, which are saved beside what torch saves: no compiler is asked
where they run, and one builds them anew where they don't."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch._dynamo.aot_compile_types import BundledAOTAutogradSerializableCallable
from torch._inductor import config
from torch._inductor.exc import InvalidCxxCompiler
from torch._inductor.utils import fresh_cache

from dit_cachegraph.graph.cut.cpp_kernels import kernels_of, put_down, with_kernels
from support.logged import logged

pytestmark = pytest.mark.skipif(
    torch.torch_version.TorchVersion(torch.__version__) < "2.13", reason="torch saves since 2.13"
)
X = torch.linspace(-1, 1, 40)


def wave(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(x) * 2 + x


@pytest.fixture(scope="module")
def bundle() -> bytes:
    """A function with one kernel, as torch saves it."""
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(wave, fullgraph=True).aot_compile(((X,), {}))
    function = compiled._artifacts.compiled_fn
    return BundledAOTAutogradSerializableCallable.serialize_compile_artifacts(function)


@pytest.fixture(scope="module")
def kernels(bundle):
    return kernels_of([bundle])


@contextmanager
def elsewhere(*, has_compiler: bool) -> Iterator[None]:
    """With an empty cache, as in another process."""
    compilers = config.cpp.cxx if has_compiler else ("/bin/false",)
    with fresh_cache(), config.patch({"cpp.cxx": compilers}):
        yield


def loaded(bundle: bytes) -> BundledAOTAutogradSerializableCallable:
    return BundledAOTAutogradSerializableCallable.deserialize_compile_artifacts(bundle)


def assert_right(function) -> None:
    (result,) = function(X)
    torch.testing.assert_close(result, wave(X))


def test_a_saved_kernel_needs_no_compiler(bundle, kernels):
    with elsewhere(has_compiler=False):
        assert len(paths := put_down(kernels)) == 1
        assert_right(loaded(with_kernels(bundle, paths)))


def test_without_it_torch_asks_for_one(bundle):
    with elsewhere(has_compiler=False), pytest.raises(InvalidCxxCompiler):
        loaded(with_kernels(bundle, {}))


def test_a_file_that_was_changed_since_is_written_anew(bundle, kernels):
    with elsewhere(has_compiler=False):
        ((name, path),) = put_down(kernels).items()
        Path(path).write_bytes(kernels.objects[name][:-1] + b"?")
        assert put_down(kernels) == {name: path}
        assert Path(path).read_bytes() == kernels.objects[name]
        assert_right(loaded(with_kernels(bundle, {name: path})))


def test_on_a_cpu_that_lacks_something_they_are_built_anew(bundle, kernels):
    of_another = kernels._replace(built_for=kernels.built_for | {"avx9000"})
    with elsewhere(has_compiler=True), logged(logging.WARNING) as lines:
        assert put_down(of_another) == {}
    assert lines == [
        "the saved kernels were built for a CPU that has avx9000, which this one lacks: a compiler "
        "builds them anew"
    ]
    assert with_kernels(bundle, {}) == bundle


def test_a_cpu_that_has_more_runs_them(kernels):
    of_less = kernels._replace(built_for=frozenset(sorted(kernels.built_for)[1:]))
    with elsewhere(has_compiler=False), logged(logging.WARNING) as lines:
        assert put_down(of_less)
    assert not lines


def test_an_object_that_cant_be_loaded_is_built_anew(bundle, kernels):
    (name,) = kernels.objects
    with elsewhere(has_compiler=True), logged(logging.WARNING) as lines:
        paths = put_down(kernels._replace(objects={name: b"for another system"}))
        assert_right(loaded(with_kernels(bundle, paths)))
    (line,) = lines
    assert "can't be loaded, and is built anew" in line


def test_what_was_loaded_can_be_saved_again(bundle, kernels):
    with elsewhere(has_compiler=False):
        function = loaded(with_kernels(bundle, put_down(kernels)))
        again = type(function).serialize_compile_artifacts(function)
        assert kernels_of([again]) == kernels
    with elsewhere(has_compiler=False):
        assert_right(loaded(with_kernels(again, put_down(kernels))))
    with elsewhere(has_compiler=False), pytest.raises(InvalidCxxCompiler):
        loaded(with_kernels(again, {}))
