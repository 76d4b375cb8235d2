"""The conformance kit as tests of your own method, in any project:

    from bench.check.pytest_plugin import conformance
    from my_package import MyMethod

    test_my_method = conformance(MyMethod)

One test a property and tower; what does not apply is skipped with its reason. The method is a
class, or the name of a registered one (plug-ins included).
"""  # noqa: D205, D415

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bench.check.cases import CASES
from bench.check.kit import FAILED, NOT_APPLICABLE, PROPERTIES, find, open_case
from bench.core.registry import method as lookup

if TYPE_CHECKING:
    from bench.check.probe import Probe
    from bench.core import Reducer


def conformance(method: str | type[Reducer], **params: Any) -> Callable[..., None]:
    """A test function over every property of `method` on every supported kind of tower.

    Args:
        method: the class, or a registered name.
        **params: the method's own parameters.
    """
    pytest = importlib.import_module("pytest")  # it runs this; the harness itself does without
    cls = lookup(method) if isinstance(method, str) else method
    opened: dict[str, Probe | str] = {}

    def test(case: Any, prop: str) -> None:
        if case.name not in opened:
            opened.clear()  # tests come case by case
            opened[case.name] = open_case(cls, case, params)
        finding = find(cls, case, opened[case.name], prop)
        if finding.status == NOT_APPLICABLE:
            pytest.skip(finding.says)
        if finding.status == FAILED:
            pytest.fail(finding.line(), pytrace=False)

    over_properties = pytest.mark.parametrize("prop", list(PROPERTIES))
    over_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    return over_properties(over_cases(test))  # type: ignore[no-any-return]
