"""io/compat.py: what is private in other libraries stands there, and nowhere else in the package."""

import ast

from helpers.toy import ROOT

PACKAGE = ROOT / "hf_finemix"


def is_private(name):
    return isinstance(name, str) and name.isidentifier() and name.startswith("_") and not name.endswith("__")


def defined(tree):
    """The private names that a module makes itself: its functions and variables, and the attributes of its objects."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def used(tree):
    """The private names that a module uses: as attributes, by their names as texts, or by import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            yield from (argument.value for argument in node.args[1:2] if isinstance(argument, ast.Constant))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (node.module or "").split(".")
            yield from (name.name for name in node.names)


def test_no_other_file_uses_what_is_private_in_other_libraries():
    found = set()
    for file in PACKAGE.rglob("*.py"):
        path, tree = file.relative_to(PACKAGE).as_posix(), ast.parse(file.read_text(encoding="utf-8"))
        theirs = set(filter(is_private, used(tree))) - set(defined(tree))
        found |= {f"{path}: {name}" for name in theirs if path != "io/compat.py"}
    assert not found


def test_the_rule_finds_what_it_is_to_find():
    code = "def f(self):\n  self._own = self._other = 1\n  x._a = getattr(y, '_b')\n  super()._c()"
    assert set(filter(is_private, used(ast.parse(code)))) - set(defined(ast.parse(code))) == {"_a", "_b", "_c"}
    assert set(filter(is_private, used(ast.parse("from a._b import _c")))) == {"_b", "_c"}
