"""Builds the amalgam: the modules that an uncontended ``bindlock run`` needs, as one.

Finding and loading six small modules takes Python 0.5 ms, a tenth of its start-up time; one takes 0.15. So the wheel
has, beside the modules, a file made of them, which scripts/bindlock runs in its compiled form. It is never edited,
never imported, and not in the source tree: without it (an editable installation) the modules themselves are run.
"""

from __future__ import annotations

import ast
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: In the order of their layers: each imports only from those before it.
MODULES = ("names", "linux/binding", "linux/become", "cli/run")

START = """
# This file is .../bindlock/cli/__pycache__/amalgam.*.pyc; what is rarely needed is imported from the package.
sys.path.append(__file__[: __file__.rindex("/bindlock/cli/")])
sys.exit(main(sys.argv[1:]))
"""


class AmalgamHook(BuildHookInterface[Any]):
    """Adds bindlock/cli/amalgam.py to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds."""
        if version == "editable":
            return
        self._directory = tempfile.TemporaryDirectory()
        path = Path(self._directory.name, "amalgam.py")
        path.write_text(amalgamate(Path(self.root, "src", "bindlock")))
        build_data["force_include"][str(path)] = "bindlock/cli/amalgam.py"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called by hatchling after it has built."""
        if version != "editable":
            self._directory.cleanup()


def amalgamate(package: Path) -> str:
    """The code of all `MODULES`, without docstrings, and without their imports of each other.

    Raises ValueError when two of them define the same name.
    """
    inside = {"bindlock." + module.replace("/", ".") for module in MODULES}
    defined: set[str] = set()
    body: list[ast.stmt] = []
    for module in MODULES:
        for node in _Bare().visit(ast.parse((package / f"{module}.py").read_text())).body:
            if isinstance(node, ast.ImportFrom) and node.module in inside:
                continue
            names = _defined(node)
            if names & defined - {"TYPE_CHECKING"}:
                raise ValueError(f"{module} defines {sorted(names & defined)} again")
            defined |= names
            body.append(node)
    return "# Made by hatch_build.py when the wheel was built.\n" + ast.unparse(ast.Module(body, [])) + START


class _Bare(ast.NodeTransformer):
    """Takes out docstrings and annotations: nothing at run time reads them here."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.returns = None
        node.body = node.body or [ast.Pass()]
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node


def _defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}
