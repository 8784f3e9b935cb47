"""Who may import whom, what loads Ray, how modules are named and how long they are."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

MAY_IMPORT = {
    "runtime": set(),
    "embedding": set(),
    "ps": {"embedding", "runtime"},
    "worker": {"embedding", "ps", "runtime"},
    "scheduler": {"embedding", "ps", "runtime", "worker"},
    "simulation": {"embedding", "ps", "runtime", "scheduler", "worker"},
    "serving": {"embedding", "ps", "runtime", "worker"},
    "synchromesh": {"embedding", "ps", "runtime", "scheduler", "serving", "worker"},
    "fuzzing": {"embedding", "ps", "runtime", "scheduler", "worker"},
}
SCRIPTS = {"benchmarks", "jobs", "scripts", "tests"}

# Beside every actor.py: what starts, places and ends the actors of a job.
DRIVER = "scheduler/driver/"
# What is loaded where a job's model is a module of PyTorch, which is an extra.
OF_TORCH = "worker/models/torch/"
# Another's actors: replicas of Ray Serve.
DEPLOYMENT = "serving/deployment.py"

FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "base", "misc"}
MAX_LINES = 600


def modules(*folders: str) -> list[Path]:
    """Python files of top-level folders, relative to the root."""
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path.relative_to(ROOT) for path in found)


PACKAGE_MODULES = modules(*MAY_IMPORT)
EVERY_MODULE = modules(*MAY_IMPORT, *SCRIPTS)


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    """Every node of a file's syntax: each file is looked at by several tests."""
    return list(ast.walk(ast.parse((ROOT / path).read_text(), str(path))))


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that a file imports, within functions too."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; name the package"
            assert node.module is not None
            yield node.lineno, node.module


def test_packages_import_only_what_is_below_them() -> None:
    assert len(PACKAGE_MODULES) > 40
    ours = set(MAY_IMPORT) | SCRIPTS
    wrong = []
    for path in PACKAGE_MODULES:
        package = path.parts[0]
        allowed = MAY_IMPORT[package] | {package}
        wrong += [
            f"{path}:{line} imports {name}; {package}/ may import only {sorted(allowed)} of ours"
            for line, name in imports_of(path)
            if name.split(".")[0] in ours - allowed
        ]
    assert not wrong, "\n".join(wrong)


def test_only_actors_and_what_starts_them_import_ray() -> None:
    wrong = [
        f"{path}:{line} imports {name}; Ray belongs into an actor.py or {DRIVER}"
        for path in PACKAGE_MODULES
        if path.name != "actor.py" and not path.as_posix().startswith((DRIVER, DEPLOYMENT))
        for line, name in imports_of(path)
        if name.split(".")[0] == "ray"
    ]
    assert not wrong, "\n".join(wrong)


def test_only_models_of_torch_import_torch() -> None:
    wrong = [
        f"{path}:{line} imports {name}; PyTorch is an extra, and belongs into {OF_TORCH}"
        for path in PACKAGE_MODULES
        if not path.as_posix().startswith(OF_TORCH)
        for line, name in imports_of(path)
        if name.split(".")[0] == "torch"
    ]
    assert not wrong, "\n".join(wrong)


def test_everything_else_can_be_imported_without_loading_ray_or_torch() -> None:
    """Also through others: a module that needs an actor's module would load it."""
    names = [
        ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        for path in PACKAGE_MODULES
        if path.name not in ("actor.py", "__main__.py")
        and not path.as_posix().startswith((DRIVER, DEPLOYMENT))
        and (path.name == "__init__.py" or not path.as_posix().startswith(OF_TORCH))
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    for other in ('ray', 'torch'):\n"
        "        assert other not in sys.modules, f'importing {name} loads {other}'\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr[-2000:]


def test_tables_need_numpy_and_numba_and_pyarrow_only_as_arrow() -> None:
    allowed = {"embedding", "filelock", "llvmlite", "numba", "numpy", *sys.stdlib_module_names}
    wrong = [
        f"{path}:{line} imports {name}"
        for path in modules("embedding")
        for line, name in imports_of(path)
        if name.split(".")[0] not in allowed
        and (path.as_posix(), name.split(".")[0]) != ("embedding/arrow.py", "pyarrow")
    ]
    assert not wrong, "\n".join(wrong)


def test_tables_can_be_used_without_pyarrow() -> None:
    program = (
        "import sys\n"
        "sys.modules['pyarrow'] = None\n"  # importing it fails
        "from embedding import EmbeddingVariable, TableSpec\n"
        "table = EmbeddingVariable(TableSpec(name='t', dim=1))\n"
        "assert len(table.top(1).keys) == 0\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr[-2000:]


def test_modules_are_named_for_what_they_hold() -> None:
    for path in EVERY_MODULE:
        for name in (*path.parts[:-1], path.stem):
            assert name not in FORBIDDEN_NAMES, f"{path}: name it for what it holds, not {name!r}"
        assert path.stem not in sys.stdlib_module_names - {"__init__"}, (
            f"{path} is named like a module of the standard library, which breaks python when it is"
            " started in that folder"
        )


def test_modules_stay_short() -> None:
    """A smell and not a law; but splitting is easier early than late."""
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in EVERY_MODULE}
    long = [f"{path} has {n} lines" for path, n in lines.items() if n > MAX_LINES]
    assert not long, f"{long}: {MAX_LINES} are the limit: split off one concern"


def test_json_is_written_so_that_every_reader_takes_it() -> None:
    """Python writes NaN unless told not to; `runtime.strict_json` writes null."""
    loose = [
        f"{path}:{call.lineno}"
        for path in modules(*MAY_IMPORT, "scripts")
        for call in nodes_of(path)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("dump", "dumps")
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "json"
        and not any(keyword.arg == "allow_nan" for keyword in call.keywords)
    ]
    assert not loose, f"use json_text there: {loose}"


# Inside a package what stands further down may import what stands above it, and not the reverse.
# Names are rooms (folders) or modules; several on a line don't need one another, or are one thing.
LAYERS = {
    "embedding": [
        {"kernels"},
        {"spec"},
        {"optimizers"},
        {"entries"},
        {"arrow"},
        {"table"},
        {"composition", "pooling"},
    ],
    "ps": [
        {"messages", "routing", "copies"},
        {"spec"},
        {"net"},
        {"shard"},
        {"client"},
        {"checkpoint"},
        {"following"},
        {"server"},
    ],
    "worker": [
        {"errors", "faults", "metrics", "pipeline_depth"},
        {"spec"},
        {"contract", "spec_json"},
        {"data"},
        {"grouped_auc", "protocol"},
        {"models", "score_sums"},
        {"step"},
        {"datasets", "inference", "session"},
        {"control_bundles", "control_wire"},
        {"awaiting", "control_loop", "coordinator_client", "loop"},
        {"relay"},
        {"running"},
        {"actor"},
    ],
    "scheduler": [
        {"errors"},
        {"scaling"},
        {"coordinator"},
        {"job"},
        {"run"},
        {"views"},
        {"driver"},
    ],
    "serving": [
        {"calls", "errors", "interpreter", "versions"},
        {"batching", "client"},
        {"bulk_client", "rows", "usual"},
        {"form"},
        {"loading", "published", "requests", "source"},
        {"source_apart", "source_process", "wire"},
        {"model"},
        {"computing"},
        {"session"},
        {"loop_session", "pool", "session_process", "session_template"},
        {"endpoint"},
        {"deployment", "running"},
    ],
    "scheduler/coordinator": [
        {"growing_plan"},
        {"batch_cutter", "ledger_plan"},
        {"batches", "clock", "ended", "least", "ledger_state", "pending", "start", "step_scalars"},
        {"ledger"},
        {"modes"},
        {
            "allowance",
            "contributions",
            "coordinator",
            "coordinator_state",
            "credits",
            "cuts",
            "dense_norms",
            "evaluation",
            "events",
            "evictions",
            "progressive",
            "totals",
            "lease_watch",
            "mode_control",
            "shard_watch",
            "skip_watch",
            "spec",
            "staleness",
            "stall_watch",
            "state",
            "work",
        },
        {"batch_trace", "history", "worker_connections"},
        {"status"},
        {"rebuilding"},
        {"server"},
        {"exported_figures"},
        {"actor"},
    ],
}


def layer_of(folder: str, name: str) -> int:
    for number, names in enumerate(LAYERS[folder]):
        if name in names:
            return number
    raise AssertionError(f"{folder}/{name} stands in no layer; give it a place in LAYERS")


@pytest.mark.parametrize("folder", LAYERS)
def test_rooms_import_one_way(folder: str) -> None:
    wrong = []
    for path in modules(folder):
        inside = path.relative_to(folder)
        if inside.name == "__init__.py":
            continue
        own = layer_of(folder, inside.with_suffix("").parts[0])
        for line, name in imports_of(path):
            parts = name.split(".")
            depth = len(Path(folder).parts)
            if "/".join(parts[:depth]) != folder or len(parts) == depth:
                continue
            if layer_of(folder, parts[depth]) > own and not for_types_only(path, line):
                wrong.append(f"{path}:{line} imports {name}, which stands above it")
    assert not wrong, "\n".join(wrong)


def for_types_only(path: Path, line: int) -> bool:
    """Whether a line stands under `if TYPE_CHECKING`."""
    for node in nodes_of(path):
        if (
            isinstance(node, ast.If)
            and isinstance(node.test, ast.Name)
            and node.test.id == "TYPE_CHECKING"
        ):
            last = node.body[-1].end_lineno
            if node.lineno <= line <= (last or node.lineno):
                return True
    return False
