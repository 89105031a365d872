"""The house stands as ARCHITECTURE.md draws it, and its front door is one sorted list."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import tapelab as tl
from tapelab import errors

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "tapelab"
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE = 600


def edges() -> dict[str, set[str]]:
    rows = re.findall(r"^\| `([\w.]+)` \|[^|]*\|([^|]*)\|$", (ROOT / "ARCHITECTURE.md").read_text(), re.M)
    return {room: set(re.findall(r"`([\w.]+)`", allowed)) for room, allowed in rows}


def room_of(module: str) -> str:
    """`tapelab.massive.wire.rest` lies in `massive.wire`, `tapelab.market.bars` in `market`."""
    parts = module.split(".")[1:]
    return "massive.wire" if parts[:2] == ["massive", "wire"] else (parts or [""])[0]


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, first: bool = False) -> set[str]:
    """What a file imports of ours; `first`: before anything in it runs."""
    found = set()
    tree = ast.parse(path.read_text())
    inner = [node for block in tree.body if isinstance(block, ast.If) for node in block.body]
    for node in [*tree.body, *inner] if first else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "tapelab"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_room_imports_only_along_the_edges_of_the_page(path):
    room = room_of(name_of(path))
    if room in ("", "faces", "__main__"):
        return
    allowed = edges()[room] | {room}
    crossed = {room_of(name) for name in imports(path)} - allowed
    assert not crossed, f"{name_of(path)} imports {sorted(crossed)}; ARCHITECTURE.md allows {sorted(allowed)}"


def test_the_page_uses_only_the_public_names():
    for path in (PACKAGE / "faces" / "app").rglob("*.py"):
        for name in imports(path):
            assert name.startswith("tapelab.faces.app") or name in {
                "tapelab",
                *(f"tapelab.{public}" for public in tl.__all__),
            }, f"{path.name} imports {name}"


def test_every_room_stands_on_the_page():
    rooms = {room_of(name_of(path)) for path in MODULES} - {"", "__main__"}
    assert rooms == set(edges())


def test_no_file_imports_itself_in_a_circle():
    known = {name_of(path) for path in MODULES}
    graph = {
        name_of(path): {
            name if name in known else name.rpartition(".")[0] for name in imports(path, first=True)
        }
        for path in MODULES
    }
    TopologicalSorter(graph).prepare()  # names the circle, if there is one


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_file_is_too_long_to_read(path):
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


PUBLIC = """
Bar Dataset FetchPlan Fill Gap Order Position Quote Result Settings Strategy TapelabError Trade
WebSocketDataRecorder backtest compare download_flat_file fetch_data fetch_quotes fetch_trades get_api_key
get_connector get_massive_s3_credentials heal list_connectors list_datasets list_symbols open_dataset
paper_trade plan_fetch rules serve strategies sync_flat_files
""".split()


def test_the_public_names_are_these_and_sorted():
    assert tl.__all__ == PUBLIC
    assert tl.__all__ == sorted(tl.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_says_what_it_does(name):
    assert (getattr(tl, name).__doc__ or "").strip()


def test_type_checkers_and_the_program_see_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    typed = {
        f"tapelab.{tl._ROOMS[alias.asname]}" == node.module and alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tapelab.")
        for alias in node.names
    }
    assert typed == set(PUBLIC)


def test_every_error_stands_in_the_drawn_tree():
    drawn = set(re.findall(r"\w+", errors.__doc__ or ""))
    family = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.TapelabError)]
    assert {c.__name__ for c in family} <= drawn
    assert all(c.__doc__ for c in family)


@pytest.mark.parametrize(
    ("module", "more"),
    [("tapelab", "obstore httpx websockets"), ("tapelab.live.receiver", "pyarrow numba")],
)
def test_importing_loads_nothing_heavy(module, more):
    heavy = f"numpy pandas polars plotly exchange_calendars starlette uvicorn streamlit {more}"
    program = f"import sys, {module}; print([m for m in {heavy.split()!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_committed_file_names_a_registry_or_a_path_of_a_machine():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    forbidden = re.compile(r"/(?:simple|packages)/|index-url\s*=|/(?:root|work)/|/home/\w+/")
    for name in listed.stdout.split():
        path = ROOT / name
        if (
            path.suffix in (".py", ".toml", ".lock", ".md", ".txt", "")
            and name != "tests/test_architecture.py"
        ):
            assert not forbidden.search(path.read_text("utf-8")), name
