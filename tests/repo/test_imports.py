"""What the package imports, in which order, and what its sources may not hold."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "dit_cachegraph"
KERNELS = ROOT / "kernels"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# A module may import those before its own group. `graph` and `runtime` are on one level, and so
# never import each other; inside of a folder there is no order but that of `GRAPH_ORDER`.
ORDER = (
    (
        "exc",
        "installed",
        "json_values",
        "later",
        "plan",
        "call_stack",
        "module_lists",
        "own_code",
        "scopes",
        "tally",
        "cpu",
    ),
    ("hooks", "ops", "segments", "step_log"),
    ("records",),
    ("observers",),
    ("policy", "ranks"),
    ("layers",),
    ("config",),
    ("planning", "requests"),
    ("retention",),
    ("call_log",),
    ("models",),
    ("calls", "cuda_graphs", "recording"),
    ("graph", "runtime"),
    ("links", "batches"),
    ("simulate", "freeze"),
    ("dry_run", "few_steps", "account"),
    ("report",),
    ("make_report",),
    ("savable",),
    ("backend",),
    ("targets", "request_handle"),
    ("api", "explain", "keep_whole", "saved"),
    ("observing",),
    ("compat",),
    ("calibration", "plot", "testing"),
    ("__init__",),
    ("metrics",),
    ("demo",),
    ("serving",),
    ("cli",),
    ("__main__",),
)
# The folders of `graph`, as the stages follow each other; modules beside them are read by all.
GRAPH_ORDER = ("prepare", "find", "understand", "cut")
LEVELS = {name: level for level, names in enumerate(ORDER) for name in names}


def part_of(module: str) -> str:
    """`dit_cachegraph.planning.region` -> `runtime`."""
    return (module.split(".") + ["__init__"])[1]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    """Full names of all that a module imports, also inside of functions; `from a import b` may
    mean the module `a.b`, so that it is told as such where there is one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports say the whole name"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = (ROOT / whole.replace(".", "/")).with_suffix(".py").exists()
                yield whole if is_module else str(node.module)


def test_every_module_has_a_level():
    assert {part_of(module_name(path)) for path in SOURCES} <= set(LEVELS)


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_one_way(path):
    own = part_of(module_name(path))
    for name in imported(tree_of(path)):
        if name.split(".")[0] == "dit_cachegraph" and part_of(name) != own:
            assert LEVELS[part_of(name)] < LEVELS[own], f"{module_name(path)} imports {name}"


def graph_level(module: str) -> int:
    """`dit_cachegraph.graph.find.join_lists` -> 1, `dit_cachegraph.graph.structure` -> -1."""
    folder = module.split(".")[2]
    return GRAPH_ORDER.index(folder) if folder in GRAPH_ORDER else -1


@pytest.mark.parametrize("path", sorted((PACKAGE / "graph").rglob("*.py")), ids=module_name)
def test_the_stages_of_the_graph_import_those_before_them(path):
    own = graph_level(module_name(path) + ".")
    for name in imported(tree_of(path)):
        if name.startswith("dit_cachegraph.graph."):
            assert graph_level(name) <= own, f"{module_name(path)} imports {name}"


def circle_in(imports: Mapping[str, set[str]]) -> list[str]:
    """Modules of which each imports the next and the last one the first, if there are any."""
    left = dict(imports)
    while left:
        leaves = [name for name, needed in left.items() if not needed & left.keys()]
        if not leaves:
            break
        for name in leaves:
            del left[name]
    path: list[str] = []
    while left and (not path or path[-1] not in path[:-1]):
        path.append(min(left[path[-1]] & left.keys()) if path else min(left))
    return path[path.index(path[-1]) :] if path else []


def test_no_modules_import_each_other_in_a_circle():
    modules = {module_name(path): set(imported(tree_of(path))) for path in SOURCES}
    assert circle_in(modules) == []


def test_a_circle_would_be_found():
    chain = {"a": {"b"}, "b": {"c", "torch"}, "c": set()}
    assert circle_in(chain) == []
    assert circle_in({**chain, "c": {"b"}}) == ["b", "c", "b"]


def test_whose_call_it_is_knows_no_graph_and_no_run():
    """`requests` comes before both; nor does compile time ask whose a call is."""
    for own, others in (("requests", ("graph", "runtime")), ("graph", ("requests", "runtime"))):
        for path in (PACKAGE / own).rglob("*.py"):
            found = [name for name in imported(tree_of(path)) if part_of(name) in others]
            assert not [name for name in found if name.startswith("dit_cachegraph")], path


def test_no_fx_at_run_time():
    for path in (
        p for own in ("planning", "requests", "runtime") for p in (PACKAGE / own).glob("*.py")
    ):
        assert not [n for n in imported(tree_of(path)) if n.startswith("torch.fx")], path
        assert "fx" not in re.findall(r"from torch import (.*)", path.read_text()), path


def test_kernels_is_no_package_and_depends_on_torch_and_triton():
    # A package of that name in the working directory would shadow the one that diffusers imports.
    assert not (KERNELS / "__init__.py").exists()
    for path in KERNELS.rglob("*.py"):
        own = path.relative_to(KERNELS).parts[0]
        roots = {name.split(".")[0] for name in imported(tree_of(path))}
        assert roots <= {"torch", "triton", own, *sys.stdlib_module_names}, path


def modules_after(code: str) -> set[str]:
    """What a fresh interpreter has imported after `code`."""
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return set(done.stdout.split())


def test_import_is_light():
    # Neither Dynamo nor Inductor: who runs what was exported does without both.
    added = modules_after("import dit_cachegraph") - modules_after("import torch")
    heavy = ("triton", "diffusers", "transformers", "matplotlib", "torch._inductor", "bench")
    assert "dit_cachegraph.api" in added
    assert not [name for name in added if name.startswith((*heavy, "torch._dynamo", "sympy"))]
    unused = ("dit_cachegraph.demo", "dit_cachegraph.metrics", "skimage", "scipy", "imageio")
    assert not [name for name in added if name.startswith(unused)]


def test_the_backend_is_found_without_importing_the_package():
    code = "import torch._dynamo; assert 'cachedit' in torch._dynamo.list_backends()"
    assert "dit_cachegraph.backend" not in modules_after(code)


MUTABLE_TYPES = frozenset(
    (
        "list", "dict", "set", "bytearray", "defaultdict", "deque", "Counter", "OrderedDict",
        "ChainMap", "WeakKeyDictionary", "WeakValueDictionary", "WeakSet", "WeakIdKeyDictionary",
        "WeakTensorKeyDictionary", "local", "count", "cycle",
    )
)  # fmt: skip
MUTABLE_DISPLAYS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
FREEZERS = frozenset(("frozenset", "tuple", "MappingProxyType"))


def mutable_state(tree: ast.Module) -> list[str]:
    """Names that a module, or a class at its top, binds to something that can be changed."""
    found = []
    for scope in (tree, *(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef))):
        for node in scope.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and _is_mutable(node.value):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found += [ast.unparse(target) for target in targets]
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            found += node.names
        elif isinstance(node, ast.FunctionDef):
            caches = [d for d in node.decorator_list if re.search(r"cache\b", ast.unparse(d))]
            found += [node.name for _ in caches]
    return [name for name in found if name not in ("__all__", "__slots__")]


def _is_mutable(value: ast.expr | None) -> bool:
    if isinstance(value, MUTABLE_DISPLAYS):
        return True
    if isinstance(value, ast.Call):
        name = ast.unparse(value.func).split(".")[-1]
        return name in MUTABLE_TYPES or (name not in FREEZERS and name.endswith("Registry"))
    if isinstance(value, ast.Tuple):
        return any(_is_mutable(item) for item in value.elts)
    return False


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_state_in_modules(path):
    # Whoever resumes a generator, in whatever context, finds its request by its frame.
    allowed = {"models.py": ["REGISTRY"], "requests/request.py": ["REQUEST_SCOPES"]}
    own = path.relative_to(PACKAGE).as_posix()
    assert mutable_state(tree_of(path)) == allowed.get(own, [])


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("A = []", ["A"]),
        ("A: dict[int, int] = {}", ["A"]),
        ("a, b = 1, {2}", ["(a, b)"]),
        ("A = collections.defaultdict(list)", ["A"]),
        ("A = weakref.WeakKeyDictionary()", ["A"]),
        ("class B:\n    cache = {}", ["cache"]),
        ("def f():\n    global x\n    x = 1", ["x"]),
        ("@functools.lru_cache(8)\ndef f(): ...", ["f"]),
        ("A = frozenset({1})\nB = MappingProxyType({})\nC = tuple([1])\n__all__ = ['a']", []),
        ("A = (1, 2)\nB: list[int]\nC = ContextVar('c', default=None)", []),
    ],
)
def test_state_in_modules_would_be_found(source, names):
    assert mutable_state(ast.parse(source)) == names


# `\w+` also takes the wildcard spellings of a whole family.
MODEL_CLASS = re.compile(r"\b\w+(?:Transformer[23]DModel|DiTModel)\b")
HOME_PATH = re.compile(r"/(?:home|Users|root)/\w|[A-Z]:\\\\?Users\b")


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_model_is_named(path):
    if part_of(module_name(path)) != "demo":
        assert MODEL_CLASS.findall(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("folder", ["dit_cachegraph", "kernels", "scripts", "bench", "tests"])
def test_no_home_folder_in_a_source(folder):
    for path in (ROOT / folder).rglob("*.py"):
        assert HOME_PATH.findall(path.read_text(encoding="utf-8")) == [], path


def test_both_would_be_found():
    assert MODEL_CLASS.findall("a FluxTransformer2DModel, SomeDiTModel; Transformer2D") == [
        "FluxTransformer2DModel",
        "SomeDiTModel",
    ]
    assert HOME_PATH.search("/".join(("", "home", "someone", "x")))
    assert not HOME_PATH.search("/homepage")
