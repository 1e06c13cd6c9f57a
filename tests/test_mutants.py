"""The list of faults that `make mutants` puts in: it must not rot."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("mutants", ROOT / "tests" / "mutants" / "run.py")
mutants = importlib.util.module_from_spec(_spec)


@pytest.fixture(scope="module", autouse=True)
def loaded():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "mutants", mutants)
        _spec.loader.exec_module(mutants)
        yield


def test_every_fault_still_applies():
    listed = mutants.faults()
    assert len(listed) > 40
    for fault in listed:
        text = (ROOT / fault.file).read_text()
        changed = fault.into(text)
        assert changed != text, fault.what
        compile(changed, fault.file, "exec")


def test_every_test_named_is_there():
    for fault in mutants.faults():
        assert fault.tests, fault.what
        for name in fault.tests:
            path, _, function = name.partition("::")
            text = (ROOT / path).read_text()
            assert not function or f"def {function}(" in text, name


def test_a_fault_whose_text_is_gone_is_an_error_not_a_pass():
    fault = mutants.Fault("x", "a.py", "1 < 2", "1 <= 2", ("t",))
    assert fault.into("if 1 < 2:") == "if 1 <= 2:"
    for text in ("if 1 > 2:", "1 < 2 and 1 < 2"):
        with pytest.raises(mutants.Outdated, match=r"no longer applies.*'1 < 2' once in a.py"):
            fault.into(text)
