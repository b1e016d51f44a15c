"""Public docstrings against signatures: every parameter, field, result and own error, and none that is not there."""

import dataclasses
import importlib
import inspect
import re

import pytest

ROOMS = ("", ".models", ".operators", ".solvers", ".reading", ".runs")
ORDER = "Parameters, Attributes, Returns, Yields, Raises, Warns, See Also, Notes, References, Examples"
EXEMPT = "matmat rmatmat rmatmat_shared matmat_sum cost shared_cost dense aslinearoperator start_of"
"""Operators' products, costs and other forms, and one of a network: their first line gives all shapes and units."""

MODULES = [importlib.import_module(f"detjac_lanczos{room}") for room in ROOMS]
PUBLIC = {name: getattr(module, name) for module in MODULES for name in module.__all__ if name != "__version__"}
CLASSES = [value for value in PUBLIC.values() if inspect.isclass(value)]


def sections(documented):
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", inspect.getdoc(documented) + "\n\n", flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def names(found, *titles):
    lines = (line for title in titles for line in found.get(title, "").splitlines() if line[:1].strip())
    return {name.strip(" *") for line in lines for name in line.split(" : ")[0].split(",")}


def ours(kind):
    return [base for base in reversed(kind.__mro__) if base.__module__.startswith("detjac_lanczos")]


def functions():
    """Yield functions and methods with their sections; a method adds to those of the method that it overrides."""
    yield from ((name, value, sections(value)) for name, value in PUBLIC.items() if value not in CLASSES)
    for kind in CLASSES:
        methods = {}
        for name, value in ((name, value) for base in ours(kind) for name, value in vars(base).items()):
            method = getattr(value, "__func__", value)
            if inspect.isfunction(method) and not name.startswith("_"):
                methods[name] = method, methods.get(name, (None, {}))[1] | sections(method)
        yield from ((f"{kind.__name__}.{name}", *found) for name, found in methods.items())


@pytest.mark.parametrize(("function", "found"), [pytest.param(f, s, id=name) for name, f, s in functions()])
def test_function_documents_its_signature_and_its_errors(function, found):
    signature = inspect.signature(function)
    if function.__name__ not in EXEMPT.split():
        assert names(found, "Parameters") == set(signature.parameters) - {"self", "cls"}
        assert {"Returns", "Yields"} & set(found) or signature.return_annotation in (None, "None")
    assert set(re.findall(r"raise ([A-Z]\w+)\(", inspect.getsource(function))) <= names(found, "Raises")
    assert list(sections(function)) == sorted(sections(function), key=ORDER.index)


def test_what_takes_a_checkpoint_says_how_a_damaged_file_is_told():
    told = {
        name: names(found, "Raises")
        for name, f, found in functions()
        if "checkpoint" in inspect.signature(f).parameters
    }
    assert told.keys() == {"analyze", "svd", "svd_batch"}
    assert all("RunFileError" in raised for raised in told.values())


@pytest.mark.parametrize("kind", CLASSES)
def test_class_documents_its_fields(kind):
    told = set().union(*(names(sections(base), "Parameters", "Attributes") for base in ours(kind)))
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    own = {field.name for field in fields if not field.name.startswith("_")}
    if getattr(kind.__init__, "__module__", "").startswith("detjac_lanczos"):
        own |= set(inspect.signature(kind.__init__).parameters) - {"self"}
    assert own <= told <= own.union(dir(kind), *map(inspect.get_annotations, ours(kind)))
    assert list(sections(kind)) == sorted(sections(kind), key=ORDER.index)
