"""Wrong solutions, one file an exercise: (file in tests/solutions, name of the mistake, [(old text, new text), ...])."""

import importlib

from support.running import ROOT

SOLUTIONS = ROOT / "tests" / "solutions"
_NAMES = sorted({path.name[:4] for path in SOLUTIONS.glob("ex*.py")})
PLANTED = [case for name in _NAMES for case in importlib.import_module(f"{__name__}.{name}").PLANTED]


def planted(tmp_path, name, patches):
    """A solution with each old text replaced by the new one."""
    source = (SOLUTIONS / f"{name}.py").read_text(encoding="utf-8")
    for old, new in patches:
        assert old in source, old
        source = source.replace(old, new)
    path = tmp_path / f"{name}.py"
    path.write_text(source, encoding="utf-8")
    return path
