"""What the code must not hold, and what its packages must be."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "pipeline").rglob("*.py"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Names that run text, load code from data, or ask a shell.
CALLS = {
    *("eval", "exec", "compile", "__import__", "breakpoint", "execfile", "input"),
    *("os.system", "os.popen", "os.spawnl", "os.spawnv", "os.execv", "os.execvp", "pty.spawn"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "tempfile.mktemp", "os.tempnam"),
    *("ssl._create_unverified_context", "pickle.loads", "pickle.load", "marshal.loads", "shelve.open"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "runpy.run_path", "code.interact", "cgitb.enable"),
    *("logging.basicConfig", "pa.register_extension_type", "importlib.metadata.entry_points"),
}
MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "imp",
    "telnetlib",
    "cgitb",
    "pty",
}
# An argument by its name, and the values that it must not have.
ARGUMENTS: dict[str, tuple[object, ...]] = {
    "shell": (True,),
    "verify": (False, None),
    "check_hostname": (False,),
    "follow_redirects": (True,),
    "allow_redirects": (True,),
    "show_locals": (True,),
    "allow_pickle": (True,),
    "unsafe": (True,),
}
# Who may use what the others must not, and why.
ALLOWED = {
    ("pipeline/job/template.py", "compile"): "a method of jinja's sandboxed environment",
}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def breaches(text: str) -> Iterator[str]:
    """Everything in a module that the rules forbid."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            if dotted(node.func) in CALLS:
                yield dotted(node.func)
            for argument in node.keywords:
                if argument.arg in ARGUMENTS and isinstance(argument.value, ast.Constant):
                    yield from [argument.arg] if argument.value.value in ARGUMENTS[argument.arg] else []
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            yield node.module or ""
        elif isinstance(node, ast.Attribute) and node.attr in {"CERT_NONE", "CERT_OPTIONAL", "TLSv1", "TLSv1_1"}:
            yield node.attr
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [target.attr for target in node.targets if isinstance(target, ast.Attribute)]
            yield from (name for name in names if name in ARGUMENTS and node.value.value in ARGUMENTS[name])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_text_loads_code_from_data_or_weakens_tls(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    assert [found for found in breaches(path.read_text()) if (name, found) not in ALLOWED] == []


@pytest.mark.parametrize(
    "text",
    [
        "eval(x)",
        "exec(x)",
        "import pickle",
        "from pickle import loads",
        "yaml.load(x)",
        "tempfile.mktemp()",
        "subprocess.run(x, shell=True)",
        "httpx.Client(verify=False)",
        "context.check_hostname = False",
        "context.verify_mode = ssl.CERT_NONE",
        "httpx.get(x, follow_redirects=True)",
        "os.system(x)",
        "__import__(x)",
    ],
)
def test_each_kind_of_breach_is_seen(text: str) -> None:
    assert list(breaches(text))


def test_sql_is_written_with_parameters_only() -> None:
    """Names of tables and columns are constants of the store; a value never becomes part of a statement."""
    for path in (ROOT / "pipeline" / "store").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and dotted(node.func).endswith((".execute", ".executemany")):
                for inner in ast.walk(node.args[0]):
                    assert not isinstance(inner, ast.BinOp), f"{path.name}:{node.lineno}"


def test_the_linters_rules_of_security_are_on_and_nowhere_switched_off_as_a_whole() -> None:
    lint = PROJECT["tool"]["ruff"]["lint"]
    assert lint["select"] == ["ALL"]
    assert not [rule for rule in lint["ignore"] if re.fullmatch(r"S\d*", rule)]
    in_product = [
        rule for pattern, rules in lint["per-file-ignores"].items() if pattern.startswith("pipeline") for rule in rules
    ]
    assert not [rule for rule in in_product if re.fullmatch(r"S\d*", rule)]


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-audio.lock", "requirements-bench.lock"])
def test_every_locked_package_has_a_version_and_hashes(name: str) -> None:
    text = (ROOT / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert lines
    for line in lines:
        assert re.match(r"[A-Za-z0-9._\-\[\]]+==\S+", line), line[:80]
        assert "--hash=sha256:" in line, line[:80]


def test_every_direct_dependency_is_locked_and_known() -> None:
    locked = set(re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    direct = [re.split(r"[\[<>=!~; ]", one)[0].lower() for one in PROJECT["project"]["dependencies"]]
    assert len(direct) <= 20, "each direct dependency is one more that can be poisoned"
    assert set(direct) <= locked
    assert "litellm" not in locked


def test_no_plugin_is_loaded_by_a_name_that_data_gives() -> None:
    assert set(PROJECT["project"]) & {"entry-points", "gui-scripts"} == set()
    users = [
        f"{path.relative_to(ROOT)}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and dotted(node.func) == "importlib.import_module"
    ]
    # Each looks the name up among those of its own package first.
    assert set(users) <= {
        "pipeline/__init__.py",
        "pipeline/operations/__init__.py",
        "pipeline/sources/__init__.py",
        "pipeline/cli/__init__.py",
        "pipeline/simulator/operations/__init__.py",
    }


def test_only_the_export_writes_a_format_that_a_spreadsheet_would_run() -> None:
    """Results are Parquet and JSON, whose cells are data; the CSV of `pipeline export` marks formulas."""
    for path in SOURCES:
        imported = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert ("csv" in imported) == (path.name == "export.py" and path.parent.name == "store")
        assert "pyarrow.csv" not in path.read_text()


def test_the_samples_hold_no_secret() -> None:
    for path in sorted((ROOT / "jobs").glob("*.yaml")):
        for deployment in yaml.safe_load(path.read_text())["deployments"]:
            for name in ("key", "token"):
                assert re.fullmatch(r"\$\{[A-Z_]+\}", deployment.get(name, "${X}"))
