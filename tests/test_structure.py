"""Every file is found at the first guess: no name twice, and each package says what belongs there."""

import ast
from collections import Counter

import pytest

from tests.test_import_direction import FILES, ROOT

PACKAGES = [file for file in FILES if file.name == "__init__.py"]


def test_no_file_name_is_used_twice():
    names = Counter(file.name for file in FILES if file.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("file", PACKAGES, ids=[str(file.parent.relative_to(ROOT)) for file in PACKAGES])
def test_each_room_has_a_docstring(file):
    assert ast.get_docstring(ast.parse(file.read_text())), "what belongs here, what it may import"


def test_every_folder_of_the_project_is_a_package():
    assert {file.parent for file in FILES if file.parent != ROOT} == {file.parent for file in PACKAGES}
